// sprfast.h for .NET: the structs as they lie in memory, and an engine that releases itself.
using System;
using System.IO;
using System.Runtime.InteropServices;

enum Verdict { Error, Pass, Reject }
enum Format { Grey8 = 1, Grey16, Rgb8, Bgr8, Rgb16, Bgr16 }

[StructLayout(LayoutKind.Sequential)]
struct SprfastError {
    public uint Size;
    public int Code;
    [MarshalAs(UnmanagedType.ByValTStr, SizeConst = 504)] public string Text;
}

[StructLayout(LayoutKind.Sequential)]
struct Frame {
    public uint Size;
    public Format Format;
    public IntPtr Data;
    public ulong Bytes;
    public int Height, Width;
    public long Pitch;
}

[StructLayout(LayoutKind.Sequential)]
struct Result {
    public uint Size;
    public Verdict Verdict;
    public double PredScore, Skipped;
    public int Code, Passes;
    [MarshalAs(UnmanagedType.ByValTStr, SizeConst = 480)] public string Reason;
}

// Any thread may score with it.
sealed class Engine : SafeHandle {
    const string Library = "libsprfast.so.1";
    [DllImport(Library)]
    static extern int sprfast_open(string path, IntPtr options, out IntPtr engine, ref SprfastError error);
    [DllImport(Library)]
    static extern void sprfast_close(IntPtr engine);
    [DllImport(Library)]
    static extern int sprfast_score(Engine engine, ref Frame frame, ref Result result, ref SprfastError error);

    public Engine(string path) : base(IntPtr.Zero, true) {
        var error = new SprfastError { Size = (uint)Marshal.SizeOf(typeof(SprfastError)) };
        if (sprfast_open(path, IntPtr.Zero, out handle, ref error) != 0) throw new IOException(error.Text);
    }

    public override bool IsInvalid { get { return handle == IntPtr.Zero; } }

    protected override bool ReleaseHandle() {
        sprfast_close(handle);
        return true;
    }

    // A frame whose rows lie without gaps in an array of bytes or 16-bit values.
    public Result Score(Array pixels, Format format, int height, int width) {
        var error = new SprfastError { Size = (uint)Marshal.SizeOf(typeof(SprfastError)) };
        var result = new Result { Size = (uint)Marshal.SizeOf(typeof(Result)) };
        var bytes = Buffer.ByteLength(pixels);
        var pinned = GCHandle.Alloc(pixels, GCHandleType.Pinned);
        try {
            var frame = new Frame {
                Size = (uint)Marshal.SizeOf(typeof(Frame)), Format = format, Data = pinned.AddrOfPinnedObject(),
                Bytes = (ulong)bytes, Height = height, Width = width, Pitch = bytes / height
            };
            if (sprfast_score(this, ref frame, ref result, ref error) != 0) throw new ArgumentException(error.Text);
        } finally {
            pinned.Free();
        }
        return result;
    }
}
