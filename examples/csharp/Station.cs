// Scores the binary PGM and PPM files of a folder, of 8 or 16 bits: a line with verdict, score, name and reason for
// each, in the order of their names.
//
//     mcs Station.cs Sprfast.cs && mono Station.exe screw.plan parts
using System;
using System.Globalization;
using System.IO;

static class Station {
    static Result Score(Engine engine, string path) {
        using (var file = new BinaryReader(File.OpenRead(path))) {
            Func<string> word = () => {
                var text = "";
                for (char next; !char.IsWhiteSpace(next = (char)file.ReadByte());) text += next;
                return text;
            };
            var channels = word() == "P6" ? 3 : 1;
            int width = int.Parse(word()), height = int.Parse(word());
            var deep = int.Parse(word()) > 255;
            var bytes = file.ReadBytes(checked(width * height * channels * (deep ? 2 : 1)));
            if (!deep) return engine.Score(bytes, channels == 3 ? Format.Rgb8 : Format.Grey8, height, width);
            var values = new ushort[bytes.Length / 2];  // which the file has with the high byte first
            for (var i = 0; i < values.Length; i++) values[i] = (ushort)(bytes[2 * i] << 8 | bytes[2 * i + 1]);
            return engine.Score(values, channels == 3 ? Format.Rgb16 : Format.Grey16, height, width);
        }
    }

    static string Line(Engine engine, string path) {
        try {
            var result = Score(engine, path);
            var score = result.PredScore.ToString("G17", CultureInfo.InvariantCulture);
            return result.Verdict.ToString().ToUpperInvariant() + " " + score + " " + path + ": " + result.Reason;
        } catch (Exception error) {
            return "ERROR NaN " + path + ": " + error.Message;
        }
    }

    static int Main(string[] arguments) {
        if (arguments.Length != 2) {
            Console.Error.WriteLine("usage: Station EXPORT FOLDER");
            return 2;
        }
        try {
            using (var engine = new Engine(arguments[0])) {
                var paths = Directory.GetFiles(arguments[1]);
                Array.Sort(paths, string.CompareOrdinal);
                foreach (var path in paths) Console.WriteLine(Line(engine, path));
            }
        } catch (IOException error) {
            Console.Error.WriteLine("station: " + error.Message);
            return 2;
        }
        return 0;
    }
}
