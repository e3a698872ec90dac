"use strict";
(() => {
  const PAGE = 24; // images
  const HEIGHT = 230, PAD = { left: 40, right: 14, top: 30, bottom: 38 };
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const rows = data.rows.map((values, index) =>
    Object.assign({ index }, Object.fromEntries(data.columns.map((name, i) => [name, values[i]]))));
  const scored = rows.filter((row) => row.score !== null);
  const good = scored.filter((row) => row.label === 0), bad = scored.filter((row) => row.label === 1);
  const limit = data.threshold ? data.threshold.value : null;
  const unit = limit !== null && limit > 0 ? limit : null; // 1.0 on the axis, where there is such a place
  const relative = (score) => (unit === null ? score : score / unit);
  const start = limit !== null ? limit : separating();
  const { draw, layers } = pictures(data, 8 * PAGE);
  let line = start, page = 0, shown = [], open = { at: 0, layer: "heat" };

  function element(tag, properties = {}, ...children) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  }
  function svg(tag, attributes, ...children) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }
  const number = (value) => String(Number(value.toPrecision(4)));
  const percent = (part, whole) => (whole ? `${(100 * part / whole).toFixed(1)}\u00a0%` : "–");
  const count = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;
  const ratioText = (score) => (unit === null ? "" : `${relative(score).toFixed(2)} × threshold`);
  const rejected = (row) => row.score === null || row.score > line;
  const rejects = (members) => members.reduce((sum, row) => sum + rejected(row), 0);

  // Where F1 is highest, for a model without a threshold; of images without labels, the highest score.
  function separating() {
    const falling = [...scored].sort((a, b) => b.score - a.score);
    let best = -1, place = falling.length ? falling[0].score : 0, caught = 0;
    falling.forEach((row, i) => {
      caught += row.label === 1;
      const next = i + 1 < falling.length ? falling[i + 1].score : row.score;
      const f1 = 2 * caught / (i + 1 + bad.length);
      if (bad.length && row.score !== next && f1 > best) [best, place] = [f1, (row.score + next) / 2];
    });
    return place;
  }

  // The axis: of scores, in logarithms where they span more than a decade.
  const values = scored.map((row) => row.score).concat(start);
  const low = Math.min(...minmax(values)), high = Math.max(...minmax(values));
  const logarithmic = low > 0 && high / low > 10;
  const forward = logarithmic ? Math.log : (value) => value, backward = logarithmic ? Math.exp : (value) => value;
  const span = forward(high) - forward(low) || Math.abs(forward(high)) || 1;
  const from = forward(low) - 0.03 * span, to = forward(high) + 0.03 * span;
  function minmax(list) {
    return list.reduce(([least, most], value) => [Math.min(least, value), Math.max(most, value)], [Infinity, -Infinity]);
  }
  let width = 0, marker = null, shade = null;
  const x = (score) => PAD.left + (forward(score) - from) / (to - from) * (width - PAD.left - PAD.right);
  const scoreAt = (pixels) =>
    backward(from + Math.min(1, Math.max(0, (pixels - PAD.left) / (width - PAD.left - PAD.right))) * (to - from));

  function ticks() {
    const [least, most] = [relative(backward(from)), relative(backward(to))];
    const found = [];
    if (logarithmic) {
      for (let power = Math.floor(Math.log10(least)); power <= Math.ceil(Math.log10(most)); power++) {
        for (const digit of [1, 2, 5]) found.push(digit * 10 ** power);
      }
    } else {
      const rough = (most - least) / Math.max(3, width / 75), power = 10 ** Math.floor(Math.log10(rough));
      const step = [1, 2, 5, 10].map((digit) => digit * power).find((each) => each >= rough);
      for (let i = Math.ceil(least / step); i * step <= most; i++) found.push(i * step);
    }
    return found.filter((value) => value >= least && value <= most);
  }

  function histogram() {
    width = byId("histogram").clientWidth;
    const bins = Math.max(20, Math.min(90, Math.floor(width / 12)));
    const counts = { up: new Array(bins).fill(0), down: new Array(bins).fill(0) };
    for (const row of scored) {
      const bin = Math.min(bins - 1, Math.floor((forward(row.score) - from) / (to - from) * bins));
      counts[row.label === 1 ? "down" : "up"][bin] += 1;
    }
    const most = { up: Math.max(1, ...counts.up), down: Math.max(0, ...counts.down) };
    const inner = HEIGHT - PAD.top - PAD.bottom;
    const middle = PAD.top + inner * most.up / (most.up + most.down), each = inner / (most.up + most.down);
    const drawn = svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "group", "aria-label": "Histogram of scores" });
    shade = svg("rect", { class: "rejected", y: PAD.top, height: inner });
    drawn.append(shade);
    const bar = (width - PAD.left - PAD.right) / bins;
    for (const [side, name] of [["up", data.labelled ? "good" : "scored"], ["down", "bad"]]) {
      counts[side].forEach((n, i) => {
        if (!n) return;
        const height = Math.max(2, n * each), y = side === "up" ? middle - height : middle;
        const rect = svg("rect", { class: side === "up" ? "good" : "bad", x: PAD.left + i * bar + 0.5, y, height,
          width: Math.max(1, bar - 1) });
        rect.append(svg("title", {}, count(n, `${name} image`)));
        drawn.append(rect);
      });
    }
    drawn.append(svg("line", { class: "axis", x1: PAD.left, x2: width - PAD.right, y1: middle, y2: middle }));
    const text = (at, y, words, anchor = "start") => svg("text", { x: at, y, "text-anchor": anchor }, words);
    if (data.labelled) drawn.append(text(PAD.left - 5, middle - 5, "good", "end"));
    if (most.down) drawn.append(text(PAD.left - 5, middle + 14, "bad", "end"));
    if (middle - PAD.top > 28) drawn.append(text(PAD.left - 5, PAD.top + 10, most.up, "end"));
    if (HEIGHT - PAD.bottom - middle > 28) drawn.append(text(PAD.left - 5, HEIGHT - PAD.bottom, most.down, "end"));
    let right = -Infinity;
    for (const value of ticks()) {
      const at = x(unit === null ? value : value * unit), words = number(value), half = 4 * words.length;
      if (at - half < right || at + half > width) continue;
      right = at + half + 8;
      drawn.append(svg("line", { class: "axis", x1: at, x2: at, y1: HEIGHT - PAD.bottom, y2: HEIGHT - PAD.bottom + 4 }));
      drawn.append(text(at, HEIGHT - PAD.bottom + 17, words, "middle"));
    }
    const axis = unit === null ? "score" : "score ÷ threshold: 1 is the limit";
    drawn.append(text(width - PAD.right, HEIGHT - 5, logarithmic ? `${axis} (logarithmic)` : axis, "end"));
    if (limit !== null) {
      const at = x(limit);
      drawn.append(svg("line", { class: "model", x1: at, x2: at, y1: PAD.top, y2: HEIGHT - PAD.bottom }));
    }
    marker = svg("g", { role: "slider", tabindex: 0, "aria-label": "Place of the threshold line", id: "slider",
      "aria-valuemin": relative(backward(from)), "aria-valuemax": relative(backward(to)) });
    marker.append(
      svg("line", { class: "line", y1: PAD.top - 4, y2: HEIGHT - PAD.bottom }),
      svg("rect", { class: "handle", y: 4, width: 56, height: 22, rx: 6 }),
      svg("text", { class: "handle-text", y: 19 }));
    drawn.append(marker);
    listen(drawn);
    const focused = document.activeElement && document.activeElement.id === "slider";
    byId("histogram").replaceChildren(drawn);
    if (focused) marker.focus();
    place();
  }

  function listen(drawn) {
    const follow = (event) => {
      const box = drawn.getBoundingClientRect();
      move(scoreAt((event.clientX - box.left) * width / box.width));
    };
    let dragging = false;
    drawn.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      dragging = true;
      drawn.setPointerCapture(event.pointerId);
      marker.focus({ preventScroll: true });
      follow(event);
      event.preventDefault();
    });
    drawn.addEventListener("pointermove", (event) => dragging && follow(event));
    for (const end of ["pointerup", "pointercancel"]) {
      drawn.addEventListener(end, () => {
        if (dragging) arrange();
        dragging = false;
      });
    }
    marker.addEventListener("keydown", (event) => {
      const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -20, PageUp: 20,
        Home: -Infinity, End: Infinity };
      if (!(event.key in steps)) return;
      event.preventDefault();
      const step = steps[event.key] * (event.shiftKey ? 10 : 1) * (to - from) / 400;
      move(backward(Math.min(to, Math.max(from, forward(line) + step))));
      arrange();
    });
  }

  function place() {
    const at = x(line), handle = marker.querySelector("rect");
    for (const name of ["x1", "x2"]) marker.querySelector("line").setAttribute(name, at);
    const left = Math.min(width - 58, Math.max(2, at - 28));
    handle.setAttribute("x", left);
    marker.querySelector("text").setAttribute("x", left + 28);
    const words = unit === null ? line.toPrecision(3) : relative(line).toFixed(2);
    marker.querySelector("text").textContent = words;
    marker.setAttribute("aria-valuenow", relative(line));
    marker.setAttribute("aria-valuetext", unit === null ? `score ${words}` : `${words} times the model's threshold`);
    shade.setAttribute("x", at);
    shade.setAttribute("width", Math.max(0, width - PAD.right - at));
  }

  function move(score) {
    line = score;
    place();
    tell();
  }

  function tell() {
    const atModel = limit !== null && line === limit, unscored = rows.length - scored.length;
    const where = unit === null ? `At score ${number(line)}` :
      `At ${atModel ? "the model's threshold" : `${relative(line).toFixed(2)} × the model's threshold`}`;
    let said = `${where}, `;
    if (data.labelled) {
      const parts = [];
      if (good.length) parts.push(`${rejects(good)} of ${count(good.length, "good image")} ` +
        `${rejects(good) === 1 ? "is" : "are"} rejected (${percent(rejects(good), good.length)})`);
      if (bad.length) parts.push(`${rejects(bad)} of ${count(bad.length, "bad image")} ` +
        `${rejects(bad) === 1 ? "is" : "are"} caught and ${bad.length - rejects(bad)} missed`);
      said += parts.join(", and ");
    } else {
      said += `${rejects(scored)} of ${count(scored.length, "image")} ${rejects(scored) === 1 ? "is" : "are"} rejected ` +
        `(${percent(rejects(scored), scored.length)})`;
    }
    byId("sentence").textContent = said + (unscored ? `; ${count(unscored, "image")} could not be scored.` : ".");
    byId("promise").textContent = promise(atModel);
    byId("line").value = unit === null ? number(line) : relative(line).toFixed(4);
    byId("unit").textContent = unit === null ? "score" : `× the model's threshold (score ${number(line)})`;
    byId("back").disabled = limit === null ? line === start : atModel;
    byId("command").textContent = line === start ? "" : `To use it: sprfast calibrate MODEL --threshold ${Number(line.toPrecision(6))}`;
    const body = byId("confusion").tBodies[0];
    const cells = [];
    for (const [name, members, wrong] of data.labelled ? [["good", good, 1], ["bad", bad, 0]] : [["images", scored, -1]]) {
      const above = rejects(members);
      cells.push(element("tr", {}, element("th", { scope: "row", textContent: name }),
        ...[members.length - above, above].map((n, side) => element("td", {
          textContent: `${n} (${percent(n, members.length)})`,
          className: wrong < 0 ? "" : side === wrong ? (n ? "wrong" : "") : "right",
        }))));
    }
    body.replaceChildren(...cells);
    for (const cell of document.querySelectorAll("[data-kind]")) {
      const members = rows.filter((row) => row.kind === cell.dataset.kind);
      cell.textContent = `${rejects(members)} (${percent(rejects(members), members.length)})`;
    }
    for (const cell of document.querySelectorAll("[data-all]")) cell.textContent = rejects(rows);
  }

  // What was promised of good parts at the line, and what the good images here say of it.
  function promise(atModel) {
    const known = data.threshold, calibrated = known && known.source === "calibrated";
    let said = "The threshold was set by hand and promises nothing.";
    if (!known) {
      said = "The model has no threshold, so it passes no image: the line starts " +
        (bad.length ? "where F1 is highest on these images" : "at the highest score") + " and promises nothing.";
    } else if (calibrated && atModel) {
      said = `Promised: at most ${number(100 * known.false_reject_rate)} % of good parts rejected, on average over ` +
        `calibrations; from ${count(known.samples, "good image")}.`;
    } else if (calibrated && known.scores.length) {
      const below = known.scores.filter((score) => score <= line).length / known.scores.length;
      const rate = 1 - Math.floor(below * known.samples) / (known.samples + 1);
      said = `The ${count(known.samples, "good image")} of the calibration stand for ` +
        `${(100 * rate).toFixed(1)} % of good parts rejected at this place.`;
    } else if (calibrated) {
      said = "Nothing is promised at this place.";
    }
    if (!good.length) return said;
    const [low, high] = wilson(rejects(good), good.length);
    return `${said} Seen: ${percent(rejects(good), good.length)}; with ${count(good.length, "good image")} the true ` +
      `rate lies between ${(100 * low).toFixed(1)} and ${(100 * high).toFixed(1)} % (95 % interval of Wilson).`;
  }
  function wilson(k, n) {
    const z = 1.96, share = k / n, centre = share + z * z / (2 * n), scale = 1 + z * z / n;
    const half = z * Math.sqrt(share * (1 - share) / n + z * z / (4 * n * n));
    return [Math.max(0, (centre - half) / scale), Math.min(1, (centre + half) / scale)];
  }

  // The gallery.
  function outcome(row) {
    if (row.score === null) return ["error", "ERROR"];
    if (row.label === 0) return rejected(row) ? ["rejected-good", "rejected, good"] : ["", "accepted, good"];
    if (row.label === 1) return rejected(row) ? ["", "rejected, bad"] : ["missed-bad", "accepted, bad"];
    return ["", rejected(row) ? "rejected" : "accepted"];
  }
  const rank = { error: 0, "rejected-good": 1, "missed-bad": 2, "": 3 };
  const orders = {
    mistakes: (a, b) => {
      const [one, other] = [outcome(a)[0], outcome(b)[0]];
      return rank[one] - rank[other] || (one === "missed-bad" ? a.score - b.score : b.score - a.score) || a.index - b.index;
    },
    highest: (a, b) => (b.score ?? Infinity) - (a.score ?? Infinity) || a.index - b.index,
    lowest: (a, b) => (a.score ?? Infinity) - (b.score ?? Infinity) || a.index - b.index,
    nearest: (a, b) => Math.abs((a.score ?? Infinity) - line) - Math.abs((b.score ?? Infinity) - line) || a.index - b.index,
    name: (a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : a.index - b.index),
  };
  const filters = { all: ["all images", () => true] };
  if (data.labelled) {
    filters.mistakes = ["mistakes", (row) => ["rejected-good", "missed-bad"].includes(outcome(row)[0])];
  }
  filters.rejected = ["rejected", rejected];
  filters.accepted = ["accepted", (row) => !rejected(row)];
  if (rows.some((row) => row.score === null)) filters.error = ["without a score", (row) => row.score === null];
  for (const kind of new Set(rows.map((row) => row.kind))) {
    if (kind !== null) filters[`kind ${kind}`] = [`kind ${kind}`, (row) => row.kind === kind];
  }
  if (!data.labelled) byId("order").options[0].textContent = "errors, then highest score";
  for (const [value, [words]] of Object.entries(filters)) byId("show").append(element("option", { value, textContent: words }));

  function arrange() {
    const chosen = filters[byId("show").value][1], part = byId("search").value.toLowerCase();
    shown = rows.filter((row) => chosen(row) && row.name.toLowerCase().includes(part)).sort(orders[byId("order").value]);
    page = Math.min(page, Math.max(0, Math.ceil(shown.length / PAGE) - 1));
    gallery();
  }
  function gallery() {
    byId("gallery").replaceChildren(...shown.slice(page * PAGE, (page + 1) * PAGE).map(card));
    const pages = Math.max(1, Math.ceil(shown.length / PAGE));
    for (const nav of document.querySelectorAll(".pager")) {
      const go = (words, there) => element("button", { type: "button", textContent: words, disabled: there < 0 || there >= pages,
        onclick: () => { page = there; gallery(); byId("images").scrollIntoView(); } });
      const first = shown.length ? page * PAGE + 1 : 0, last = Math.min(shown.length, (page + 1) * PAGE);
      nav.replaceChildren(go("← page before", page - 1),
        element("span", { textContent: `${first}–${last} of ${count(shown.length, "image")}, page ${page + 1} of ${pages}` }),
        go("next page →", page + 1));
    }
  }
  function describe(row) {
    if (row.score === null) return row.reason || "no score";
    const kind = row.kind !== null && row.label === 1 ? `${row.kind} · ` : "";
    return `${kind}${unit === null ? "" : `${ratioText(row.score)} · `}score ${number(row.score)}`;
  }
  function card(row, at) {
    const [className, words] = outcome(row), position = page * PAGE + at;
    const tiles = element("div", { className: "tiles" });
    const made = element("article", { className: `card ${className}` },
      element("h3", { textContent: row.name.split("/").slice(-2).join("/"), title: row.name }),
      element("p", {}, element("span", { className: "badge", textContent: words }), ` ${describe(row)}`), tiles);
    for (const [layer, name] of Object.entries(layers(row))) {
      const canvas = element("canvas", { width: 1, height: 1 });
      tiles.append(element("button", { type: "button", onclick: () => enlarge(position, layer),
        ariaLabel: `${name} of ${row.name}, large` }, canvas, name));
      draw(canvas, row, layer, 160);
    }
    return made;
  }

  // One picture, large.
  function enlarge(at, layer) {
    open = { at, layer };
    const row = shown[at], known = layers(row, true);
    byId("large-name").textContent = row.name;
    byId("large-layers").replaceChildren(...Object.entries(known).map(([name, words]) => element("button", {
      type: "button", textContent: words, ariaPressed: String(name === layer), onclick: () => enlarge(at, name) })));
    const size = row.size ? ` · ${row.size[1]} × ${row.size[0]} pixels` : "";
    byId("large-text").textContent = `${outcome(row)[1]} · ${describe(row)}${size}`;
    byId("before").disabled = at === 0;
    byId("next").disabled = at + 1 >= shown.length;
    if (!byId("large").open) byId("large").showModal();
    draw(byId("large-picture"), row, layer, 900);
  }
  function step(by) {
    const at = open.at + by;
    if (at >= 0 && at < shown.length) enlarge(at, open.layer in layers(shown[at], true) ? open.layer : "heat");
  }
  byId("before").onclick = () => step(-1);
  byId("next").onclick = () => step(1);
  byId("close").onclick = () => byId("large").close();
  byId("large").addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  byId("large").addEventListener("click", (event) => event.target === byId("large") && byId("large").close());

  byId("show").onchange = byId("order").onchange = byId("search").oninput = () => { page = 0; arrange(); };
  byId("line").onchange = () => {
    const value = Number(byId("line").value);
    const least = backward(from), most = backward(to);
    if (byId("line").value !== "" && Number.isFinite(value)) move(Math.min(most, Math.max(least, unit === null ? value : value * unit)));
    else tell();
    arrange();
  };
  byId("back").onclick = () => { move(start); arrange(); };
  if (limit === null) byId("back").textContent = "Back to the start";
  new ResizeObserver(() => byId("histogram").clientWidth !== width && histogram()).observe(byId("histogram"));
  histogram();
  tell();
  arrange();
})();
