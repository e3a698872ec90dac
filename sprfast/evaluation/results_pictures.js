"use strict";
// Pictures of the page: decoded when they are looked at, `kept` images at a time.
function pictures(data, kept) {
  const blocks = new Map(), decoded = new Map();
  async function bitmap(text) {
    if (!text) return null;
    const image = new Image();
    image.src = `data:image/webp;base64,${text}`;
    await image.decode();
    return image;
  }
  function load(index) {
    if (!decoded.has(index)) {
      const name = Math.floor(index / data.block), stored = document.getElementById(`block-${name}`);
      if (stored && !blocks.has(name)) blocks.set(name, JSON.parse(stored.textContent));
      if (blocks.size > 8) blocks.delete(blocks.keys().next().value);
      const parts = stored ? blocks.get(name)[index % data.block] : ["", "", ""];
      decoded.set(index, Promise.all(parts.map(bitmap)));
      if (decoded.size > kept) decoded.delete(decoded.keys().next().value);
    }
    return decoded.get(index);
  }
  function scaled(image, w, h, smooth = true) {
    const canvas = Object.assign(document.createElement("canvas"), { width: w, height: h });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.imageSmoothingEnabled = smooth;
    context.imageSmoothingQuality = "high";
    context.drawImage(image, 0, 0, w, h);
    return context.getImageData(0, 0, w, h);
  }
  // Google's polynomial of the colour map turbo, by Anton Mikhailov and Ruofei Du.
  function turbo(v) {
    const fit = (c) => 255 * Math.min(1, Math.max(0, c.reduceRight((sum, each) => sum * v + each, 0)));
    return [fit([0.13572138, 4.6153926, -42.66032258, 132.13108234, -152.94239396, 59.28637943]),
      fit([0.09140261, 2.19418839, 4.84296658, -14.18503333, 4.27729857, 2.82956604]),
      fit([0.1066733, 12.64194608, -60.58204836, 110.36276771, -89.90310912, 27.34824973])];
  }
  const COLOURS = Array.from({ length: 256 }, (_, grey) => turbo(0.1 + 0.8 * grey / 255));

  function above(map, i) {
    return data.marked && map.data[4 * i] > 127;
  }
  function heat(picture, map, w, h) {
    const reach = Math.max(1, Math.round(Math.min(w, h) / 128)), pixels = picture.data;
    for (let i = 0; i < w * h; i++) {
      const grey = map.data[4 * i], alpha = 0.55 * Math.min(1, Math.max(0, grey / 127.5 - 0.5));
      for (let c = 0; c < 3; c++) pixels[4 * i + c] += alpha * (COLOURS[grey][c] - pixels[4 * i + c]);
    }
    if (!data.marked) return;
    for (let y = 0; y < h; y++) {
      for (let at = 0; at < w; at++) {
        const i = y * w + at;
        if (!above(map, i)) continue;
        const edge = (far) => (at >= far && !above(map, i - far)) || (at + far < w && !above(map, i + far)) ||
          (y >= far && !above(map, i - far * w)) || (y + far < h && !above(map, i + far * w));
        if (edge(reach)) pixels.fill(255, 4 * i, 4 * i + 3);
        else if (edge(2 * reach)) pixels.fill(0, 4 * i, 4 * i + 3);
      }
    }
  }
  // The map by itself, its own maximum as red: where it is highest, however low that is.
  function alone(pixels, map) {
    const most = map.data.reduce((most, value, i) => (i % 4 ? most : Math.max(most, value)), 1);
    for (let i = 0; i < pixels.data.length; i += 4) {
      COLOURS[Math.round(255 * map.data[i] / most)].forEach((value, c) => { pixels.data[i + c] = value; });
    }
  }

  // What can be shown of a row, by name.
  function layers(row, large) {
    const found = { picture: "picture", heat: "heat" };
    if (large || row.label === null) found.map = "map"; // in place of the truth
    if (data.marked) found.mask = "marked";
    if (row.label !== null) found.truth = "truth";
    return found;
  }
  async function draw(canvas, row, layer, side) {
    const wanted = `${row.index} ${layer}`;
    canvas.dataset.wanted = wanted;
    const [picture, map, truth] = await load(row.index).catch(() => [null, null, null]);
    if (canvas.dataset.wanted !== wanted) return; // another one was asked for meanwhile
    const natural = picture ? [picture.naturalWidth, picture.naturalHeight] : [1, 1];
    const factor = side / Math.max(...natural);
    const [w, h] = natural.map((length) => Math.max(1, Math.round(length * factor)));
    Object.assign(canvas, { width: w, height: h });
    const context = canvas.getContext("2d");
    const note = (words) => {
      context.fillStyle = "#57606a";
      context.font = `${Math.max(11, Math.round(side / 14))}px system-ui, sans-serif`;
      context.textAlign = "center";
      context.fillText(words, w / 2, h / 2, w - 8);
    };
    if (!picture) return note("no picture");
    if (layer === "truth") {
      if (row.label === 0) return note("good");
      if (!truth) return note("no mask");
      context.imageSmoothingEnabled = false;
      return context.drawImage(truth, 0, 0, w, h);
    }
    const pixels = scaled(picture, w, h);
    if (layer === "picture") return context.putImageData(pixels, 0, 0);
    if (!map) return note("no map");
    const grey = scaled(map, w, h);
    if (layer === "heat") heat(pixels, grey, w, h);
    else if (layer === "map") alone(pixels, grey);
    else for (let i = 0; i < w * h; i++) pixels.data.fill(above(grey, i) ? 255 : 0, 4 * i, 4 * i + 3);
    context.putImageData(pixels, 0, 0);
  }
  return { draw, layers };
}
