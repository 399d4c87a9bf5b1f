// The gallery: window.report (data.js) -> a grid of which only what is near the window exists.

const report = window.report;
const runs = report.runs.map((run) => ({ ...run, columns: new Map(run.columns.map((column) => [column.key, column])) }));
const items = report.items; // each: the row of each run, -1 where it has none
const two = runs.length > 1;
const GAP = 12, CAPTION = 40;
const NO_FACET = new Set(["file", "thumb", "sha256", "bytes", "seconds", "line", "worker", "time"]);
const FACETS_FIRST = ["prompt", "lora", "lora_step", "lora_weight", "scheduler", "steps", "guidance", "seed"];
const MOST_OPTIONS = 2000; // past that a list is for searching, not for choosing
const NOT_SHOWN = new Set(["thumb", "prompt", "bytes"]);
const NO_SETTING = new Set(["file", "seconds", "worker", "time"]); // may differ between equal pictures

function value(run, row, key) {
  const column = row < 0 ? undefined : runs[run].columns.get(key);
  if (!column) return null;
  const found = !column.at ? column.values[row] : column.values[column.at.length ? column.at[row] : 0];
  return found === undefined ? null : found;
}
const first = (item, key) => { // of the first run that has the picture
  const run = item.findIndex((row) => row >= 0);
  return value(run, item[run], key);
};
// A file's name may hold ? # % and blanks.
const address = (run, path) => [runs[run].run, ...String(path).split("/")].map(encodeURIComponent).join("/");
const nameOf = (index) => {
  const line = first(items[index], "line"), image = first(items[index], "image");
  return line === null ? `n${index}` : `${line}-${image ?? 0}`;
};

// ---- which tiles

let shown = items.map((_, index) => index);
const chosen = new Map(); // facet -> JSON of the value
let texts = null;

function textOf(item) {
  return item.flatMap((row, run) => row < 0 ? [] : [...runs[run].columns.keys()]
    .filter((key) => key !== "thumb" && key !== "sha256").map((key) => words(value(run, row, key))))
    .join("\n").toLowerCase();
}

function choose() {
  const asked = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  if (asked.length) texts = texts || items.map(textOf);
  shown = [];
  items.forEach((item, index) => {
    if (!asked.every((word) => texts[index].includes(word))) return;
    for (const [key, wanted] of chosen) {
      if (!item.some((row, run) => row >= 0 && JSON.stringify(value(run, row, key)) === wanted)) return;
    }
    shown.push(index);
  });
  const all = `${items.length.toLocaleString("en")} ${two ? "pairs" : items.length === 1 ? "picture" : "pictures"}`;
  $("count").textContent = shown.length === items.length ? all + gaps() : `${shown.length.toLocaleString("en")} of ${all}`;
  $("clear").hidden = !asked.length && !chosen.size;
  $("empty").hidden = shown.length > 0;
  for (const select of $("facets").children) select.classList.toggle("set", chosen.has(select.name));
  layOut();
}

function gaps() { // what is not there, told once
  const told = [];
  if (two) {
    const single = items.filter((item) => item.includes(-1)).length;
    const other = items.filter((item) => !item.includes(-1) && value(0, item[0], "prompt") !== value(1, item[1], "prompt")).length;
    if (single) told.push(`${single} in one run only`);
    if (other) told.push(`${other} with another prompt`);
  } else if (runs[0].missing > 0) told.push(`${runs[0].missing} not there`);
  return told.map((text) => `, ${text}`).join("");
}

function facets() {
  const keys = [...new Set(runs.flatMap((run) => [...run.columns.keys()]))].filter((key) => !NO_FACET.has(key));
  const rank = (key) => (FACETS_FIRST.indexOf(key) + 1) || 99;
  for (const key of keys.sort((a, b) => rank(a) - rank(b))) {
    const columns = runs.map((run) => run.columns.get(key)).filter(Boolean);
    if (columns.every((column) => column.at && !column.at.length)) continue; // one value a run
    const counts = new Map();
    items.forEach((item) => new Set(item.map((row, run) => row < 0 ? null : JSON.stringify(value(run, row, key))))
      .forEach((text) => text !== null && counts.set(text, (counts.get(text) || 0) + 1)));
    if (counts.size < 2 || counts.size > MOST_OPTIONS) continue;
    const label = key.replaceAll("_", " ");
    const select = make("select", { name: key, "aria-label": label }, make("option", { value: "" }, `${label}: all`));
    const values = [...counts].map(([text, count]) => [text, JSON.parse(text), count]);
    values.sort((a, b) => typeof a[1] === "number" && typeof b[1] === "number" ? a[1] - b[1]
      : words(a[1]).localeCompare(words(b[1]), undefined, { numeric: true }));
    select.append(...values.map(([text, found, count]) => make("option", { value: text }, `${words(found).slice(0, 80)} (${count})`)));
    select.addEventListener("change", () => {
      if (select.value) chosen.set(key, select.value); else chosen.delete(key);
      choose();
    });
    $("facets").append(select);
  }
}

function clear() {
  $("search").value = "";
  chosen.clear();
  for (const select of $("facets").children) select.value = "";
  choose();
}

// ---- the grid

const grid = $("grid");
const tiles = new Map(); // place in `shown` -> element
let columns = 1, width = 0, pictureHeight = 0, rowHeight = 1, planned = false;

function aspect() { // of all pictures where they are of one size
  const [w, h] = ["width", "height"].map((key) => value(0, items.length && runs[0].count ? 0 : -1, key));
  return w > 0 && h > 0 ? Math.min(2, Math.max(.5, w / h)) : 1;
}

function layOut() {
  const space = grid.clientWidth, wanted = Math.min(space, Number($("size").value) * (two ? 2 : 1));
  columns = Math.max(1, Math.floor((space + GAP) / (wanted + GAP)));
  width = Math.floor((space - GAP * (columns - 1)) / columns);
  pictureHeight = Math.round(width / (two ? 2 : 1) / aspect());
  rowHeight = pictureHeight + CAPTION + GAP;
  grid.style.height = `${Math.ceil(shown.length / columns) * rowHeight}px`;
  for (const place of [...tiles.keys()]) drop(place);
  draw();
}

function draw() {
  planned = false;
  const top = -grid.getBoundingClientRect().top, height = innerHeight;
  const row = (y) => Math.floor(y / rowHeight) * columns;
  const from = Math.max(0, row(top - height)), until = Math.min(shown.length, row(top + 2 * height) + columns);
  for (const place of [...tiles.keys()]) {
    if ((place < from || place >= until) && tiles.get(place) !== document.activeElement) drop(place);
  }
  const seen = Math.max(from, row(top)), unseen = Math.max(seen, Math.min(until, row(top + height) + columns));
  const fresh = document.createDocumentFragment();
  for (let place = seen; place < unseen; place++) put(place, fresh);
  // The rest is asked for when what is in the window is there: it would only be in its way.
  let waits = false;
  for (let place = seen; place < unseen; place++) {
    waits = waits || [...tiles.get(place).querySelectorAll("img")].some((image) => !image.complete);
  }
  if (!waits) {
    for (let place = unseen; place < until; place++) put(place, fresh);
    for (let place = seen - 1; place >= from; place--) put(place, fresh);
  }
  grid.append(fresh);
}

function put(place, into) {
  if (tiles.has(place)) return;
  const index = shown[place], item = items[index];
  const halves = make("div", { class: "halves", style: `height:${pictureHeight}px` });
  item.forEach((row, run) => {
    const half = make("div", { class: "half" });
    if (row < 0) half.textContent = "not in this run";
    else half.append(thumbnail(run, row));
    halves.append(half);
  });
  const tile = make("a", { class: "tile", href: `#${nameOf(index)}`, role: "listitem", "aria-setsize": shown.length, "aria-posinset": place + 1 },
    halves, make("div", { class: "caption", dir: "auto" }, words(first(item, "prompt"))));
  const [x, y] = [place % columns * (width + GAP), Math.floor(place / columns) * rowHeight];
  tile.style.cssText = `width:${width}px;height:${rowHeight - GAP}px;transform:translate(${x}px,${y}px)`;
  tile.dataset.place = place;
  tiles.set(place, tile);
  into.append(tile);
}

function thumbnail(run, row) {
  const small = value(run, row, "thumb"), file = value(run, row, "file");
  const image = make("img", { src: address(run, small || file), alt: words(value(run, row, "prompt")), decoding: "async", draggable: "false" });
  image.addEventListener("load", plan);
  image.addEventListener("error", () => { if (image.isConnected) image.replaceWith("cannot be shown"); plan(); });
  return image;
}

function drop(place) {
  const tile = tiles.get(place);
  for (const image of tile.querySelectorAll("img")) image.removeAttribute("src"); // ask for it no more
  tile.remove();
  tiles.delete(place);
}

function plan() { if (!planned) { planned = true; requestAnimationFrame(draw); } }

function reveal(place, focus) { // scroll so that a tile is in the window
  const top = scrollY + grid.getBoundingClientRect().top + Math.floor(place / columns) * rowHeight;
  const bar = $("bar").offsetHeight + GAP;
  if (top < scrollY + bar) scrollTo(0, top - bar);
  else if (top + rowHeight > scrollY + innerHeight) scrollTo(0, top + rowHeight - innerHeight);
  draw();
  if (focus && tiles.has(place)) tiles.get(place).focus({ preventScroll: true });
}
