// The large view of the gallery, and what starts the page. The address says which picture is open,
// so that it can be sent to somebody and the Back button closes it.

const large = $("large"), stage = $("stage");
let open = -1; // index in items
let came = false; // by a step of this page, which Back undoes
let leaving = false; // Back is on its way: what the address was meanwhile is not to be followed

const runName = (run) => make("span", {}, make("i", { class: run ? "dot two" : "dot" }), runs[run].run);

function show(index) {
  open = index;
  const item = items[index], place = shown.indexOf(index);
  stage.replaceChildren(...item.map((row, run) => figure(run, row)));
  $("prompt").textContent = words(first(item, "prompt"));
  $("place").textContent = place < 0 ? "" : `${(place + 1).toLocaleString("en")} of ${shown.length.toLocaleString("en")}`;
  $("before").disabled = place <= 0;
  $("after").disabled = place < 0 || place + 1 >= shown.length;
  $("compare").hidden = !two || item.includes(-1);
  const over = !$("compare").hidden && $("over").getAttribute("aria-pressed") === "true";
  stage.classList.toggle("over", over);
  $("wipe").hidden = !over;
  $("links").replaceChildren(...item.flatMap((row, run) => row < 0 ? [] : [
    make("a", { href: address(run, value(run, row, "file")), target: "_blank" }, two ? `Open ${run ? "second" : "first"}` : "Open the file"),
  ]));
  $("facts").replaceChildren(facts(item));
  if (!large.open) large.showModal();
  for (const step of [1, -1]) { // so that the next is there when it is asked for
    const next = items[shown[place + step]];
    if (place >= 0 && next) next.forEach((row, run) => { if (row >= 0) new Image().src = address(run, value(run, row, "file")); });
  }
}

function figure(run, row) {
  if (row < 0) return make("figure", {}, make("div", { class: "frame soft" }, "not in this run"), make("figcaption", {}, runName(run)));
  const image = make("img", { src: address(run, value(run, row, "file")), alt: words(value(run, row, "prompt")), draggable: "false" });
  const small = value(run, row, "thumb");
  if (small) image.style.backgroundImage = `url("${address(run, small)}")`; // until the large one is there
  image.addEventListener("load", () => { image.style.backgroundImage = ""; });
  image.addEventListener("error", () => image.replaceWith("cannot be shown"));
  return two ? make("figure", {}, make("div", { class: "frame" }, image), make("figcaption", {}, runName(run)))
    : make("figure", {}, make("div", { class: "frame" }, image));
}

function facts(item) {
  const keys = [...new Set(runs.flatMap((run) => [...run.columns.keys()]))].filter((key) => !NOT_SHOWN.has(key));
  const same = two && value(0, item[0], "prompt") !== value(1, item[1], "prompt") ? ["prompt"] : [];
  const rows = [...same, ...keys].map((key) => [key.replaceAll("_", " "), ...item.map((row, run) => words(value(run, row, key)))]);
  const told = rows.filter(([, ...values]) => values.some((text) => text !== "–"));
  const found = two ? table(["", "first", "second"], told) : table(null, told);
  for (const row of found.tBodies[0].rows) if (NO_SETTING.has(row.cells[0].textContent)) row.classList.remove("differs");
  return found;
}

function step(by) {
  const place = shown.indexOf(open) + by;
  if (place < 0 || place >= shown.length || shown.indexOf(open) < 0) return;
  location.replace(`#${nameOf(shown[place])}`);
  show(shown[place]); // the event of the address comes later than a quick finger's next key
}

function follow() { // the address has changed
  const name = decodeURIComponent(location.hash.slice(1));
  const index = name ? items.findIndex((_, at) => nameOf(at) === name) : -1;
  if (leaving) leaving = name !== "";
  else if (index >= 0 && index !== open) show(index);
  else if (index < 0 && large.open) large.close();
}

large.addEventListener("close", () => {
  stage.replaceChildren();
  const place = shown.indexOf(open);
  open = -1;
  if (location.hash.length > 1) {
    if (came) { leaving = true; history.back(); }
    else history.replaceState(null, "", location.href.replace(/#.*/, "")); // "#" would scroll to the top
  }
  came = false;
  if (place >= 0) reveal(place, true);
});
// On the document: a button that has the focus loses it to nobody when it is disabled.
document.addEventListener("keydown", (event) => {
  if (!large.open || event.target.type === "range" || event.altKey || event.ctrlKey || event.metaKey) return;
  const by = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1, Home: -shown.indexOf(open), End: shown.length - 1 - shown.indexOf(open) }[event.key];
  if (by === undefined) return;
  event.preventDefault();
  step(by);
});
swipes(stage, step);
$("before").addEventListener("click", () => step(-1));
$("after").addEventListener("click", () => step(1));
$("close").addEventListener("click", () => large.close());
$("alike").addEventListener("click", () => {
  const prompt = first(items[open], "prompt");
  clear();
  chosen.set("prompt", JSON.stringify(prompt));
  const select = $("facets").querySelector("[name=prompt]");
  if (select) select.value = JSON.stringify(prompt);
  large.close();
  choose();
});
$("over").addEventListener("click", () => {
  $("over").setAttribute("aria-pressed", $("over").getAttribute("aria-pressed") !== "true");
  show(open);
});
$("wipe").addEventListener("input", () => stage.style.setProperty("--wipe", $("wipe").value));
stage.addEventListener("pointermove", (event) => { // the mouse wipes, a finger goes to the next picture
  const frame = stage.querySelector(".frame");
  if (!stage.classList.contains("over") || event.pointerType !== "mouse" || !frame) return;
  const box = frame.getBoundingClientRect();
  $("wipe").value = Math.round(100 - 100 * (event.clientX - box.left) / box.width);
  $("wipe").dispatchEvent(new Event("input"));
});

// ---- start

history.scrollRestoration = "manual"; // Back from a picture goes where that picture is
grid.addEventListener("click", (event) => {
  if (event.target.closest(".tile")) [came, leaving] = [true, false];
});
grid.addEventListener("keydown", (event) => {
  const tile = event.target.closest(".tile");
  const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
  if (!tile || by === undefined) return;
  event.preventDefault();
  const place = Number(tile.dataset.place) + by;
  if (place >= 0 && place < shown.length) reveal(place, true);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !large.open && event.target !== $("search")) { event.preventDefault(); $("search").focus(); }
  if (event.key === "Escape" && event.target === $("search")) clear();
});
let typing = 0;
$("search").addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(choose, 80); });
$("filters").addEventListener("submit", (event) => event.preventDefault());
$("clear").addEventListener("click", clear);
$("all").addEventListener("click", clear);
$("size").addEventListener("input", layOut);
addEventListener("scroll", plan, { passive: true });
addEventListener("hashchange", follow);
new ResizeObserver(() => { if (grid.clientWidth !== lastWidth) { lastWidth = grid.clientWidth; layOut(); } else plan(); }).observe(grid.parentElement);
let lastWidth = 0;

themes($("theme"));
$("size").value = innerWidth < 760 ? 110 : 180;
if (two) $("title").replaceChildren(runName(0), " and ", runName(1));
const parts = ["spec", "result"].map((part) => table(two ? [part, ...runs.map((run) => run.run)] : [part, ""], union(runs.map((run) => run[part]))));
$("settings").append(...parts);
choose();
follow();
setTimeout(facets); // after the first paint
