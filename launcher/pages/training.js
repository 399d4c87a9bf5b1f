// The page of one training run, or of two over each other: `report` -> figures, curves, pictures.

const runs = report.runs;
const two = runs.length > 1;
const styles = ["one", "two"];
// Of the phases there is a table: where the time went.
const NO_CURVE = new Set(["step", "steps", "time", "attempt", "compile_s", "data_s", "step_s", "checkpoint_s", "validation_s"]);
const FIRST = ["loss", "img_s", "ms_per_step", "grad_norm", "lr", "loss_scale"];
const LABELS = { img_s: "pictures per second", ms_per_step: "milliseconds per step", grad_norm: "gradient norm", lr: "learning rate", loss_scale: "loss scale" };
const label = (key) => LABELS[key] || key.replaceAll("_", " ").replace(".", ": ");

const dot = (run) => make("i", { class: `dot ${styles[run]}` });
const named = (run) => make("span", {}, dot(run), runs[run].run);
const lastOf = (run, key) => (runs[run].curves[key] || []).findLast((value) => value !== null) ?? null;

// ---- figures

function clock(run) {
  const spans = runs[run].spans;
  return spans.length ? Math.max(...spans.map((span) => span[2])) - Math.min(...spans.map((span) => span[1])) : null;
}

const figures = [
  ["Steps", (run) => {
    const [done, all] = [lastOf(run, "step"), runs[run].spec.steps ?? lastOf(run, "steps")];
    return done === null ? null : all && all !== done ? `${done} of ${all}` : String(done);
  }],
  ["Loss", (run) => lastOf(run, "loss") === null ? null : short(lastOf(run, "loss"))],
  ["Pictures per second", (run) => (runs[run].result.img_s ?? lastOf(run, "img_s")) === null ? null : short(runs[run].result.img_s ?? lastOf(run, "img_s"))],
  ["Compilation", (run) => typeof runs[run].result.compile_s === "number" ? lasting(runs[run].result.compile_s) : null],
  ["On the clock", (run) => clock(run) === null ? null : lasting(clock(run))],
  ["Workers", (run) => runs[run].result.npus ?? null],
];
for (const [name, of] of figures) {
  const values = runs.map((_, run) => of(run));
  if (values.every((value) => value === null)) continue;
  $("figures").append(make("div", { class: "figure" }, make("div", { class: "name" }, name),
    ...values.map((value, run) => make("div", { class: two ? "value small" : "value" }, ...two ? [dot(run)] : [], words(value)))));
}
if (two) $("title").replaceChildren(named(0), " and ", named(1));
$("state").textContent = two ? "" : [runs[0].spec.method, runs[0].spec.precision, runs[0].spec.model, runs[0].about.state].filter(Boolean).join(" · ");

// ---- curves

function curves() {
  const keys = [...new Set(runs.flatMap((run) => Object.keys(run.curves)))].filter((key) => !NO_CURVE.has(key));
  const rank = (key) => (FIRST.indexOf(key) + 1) || 99;
  const along = $("along").value;
  const charts = keys.sort((a, b) => rank(a) - rank(b)).map((key) => {
    const lines = runs.flatMap((run, index) => {
      if (!run.curves[key]) return [];
      const start = along === "time" ? (run.curves.time || []).find((value) => value !== null) : 0;
      const xs = (run.curves[along] || []).map((value) => value === null ? null : value - (start || 0));
      return xs.length ? [{ style: styles[index], xs, ys: run.curves[key] }] : [];
    });
    if (!lines.some((line) => line.ys.some((value) => value !== null))) return null;
    const loss = key === "loss";
    return chart(lines, { name: label(key), along, wide: loss, height: loss ? 300 : 180,
      log: loss && $("log").checked, weight: $("smooth").value / 100 });
  });
  $("charts").replaceChildren(...charts.filter(Boolean));
  $("curves").hidden = !keys.length;
}
for (const name of ["smooth", "along", "log"]) $(name).addEventListener("input", curves);
if (!runs.some((run) => run.curves.time)) $("along").parentElement.hidden = true;

// ---- validation pictures

const album = []; // {source, text}
let open = 0;

function pictures() {
  const steps = [...new Set(runs.flatMap((run) => run.pictures.map((picture) => picture.step)))].sort((a, b) => a - b);
  const rows = new Map(); // prompt and run -> step -> picture
  runs.forEach((run, index) => run.pictures.forEach((picture) => {
    const key = JSON.stringify([picture.line ?? 0, picture.prompt ?? "", index]);
    if (!rows.has(key)) rows.set(key, new Map());
    rows.get(key).set(picture.step, picture);
  }));
  if (!rows.size) return;
  const body = make("tbody");
  const order = [...rows.keys()].map((key) => JSON.parse(key)).sort((a, b) => a[0] - b[0] || a[2] - b[2]);
  for (const [line, prompt, run] of order) {
    const cells = steps.map((step) => {
      const picture = rows.get(JSON.stringify([line, prompt, run])).get(step);
      if (!picture) return make("td");
      if (!picture.source) return make("td", { class: "soft" }, "cannot be shown");
      const place = album.push({ source: picture.source, text: `step ${step}: ${prompt}${two ? ` (${runs[run].run})` : ""}` }) - 1;
      const button = make("button", { type: "button", title: `step ${step}` }, make("img", { src: picture.source, alt: `step ${step}: ${prompt}`, decoding: "async" }));
      button.addEventListener("click", () => show(place));
      return make("td", {}, button);
    });
    body.append(make("tr", {}, make("th", { scope: "row", dir: "auto" }, ...two ? [dot(run)] : [], prompt || `line ${line}`), ...cells));
  }
  const head = make("thead", {}, make("tr", {}, make("th"), ...steps.map((step) => make("th", { scope: "col" }, `step ${step}`))));
  $("pictures").append(make("table", {}, head, body));
  $("validation").hidden = false;
}

function show(place) {
  if (place < 0 || place >= album.length) return;
  open = place;
  $("picture").src = album[place].source;
  $("picture").alt = $("caption").textContent = album[place].text;
  $("before").disabled = place === 0;
  $("after").disabled = place === album.length - 1;
  if (!$("large").open) $("large").showModal();
}
$("before").addEventListener("click", () => show(open - 1));
$("after").addEventListener("click", () => show(open + 1));
$("close").addEventListener("click", () => $("large").close());
document.addEventListener("keydown", (event) => { // a button that is disabled has no focus any more
  const by = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
  if (by && $("large").open) { event.preventDefault(); show(open + by); }
});
swipes($("large"), (by) => show(open + by));

// ---- timeline

function timeline() {
  const lanes = runs.flatMap((run, index) => [...new Set(run.spans.map((span) => span[0]))].map((lane) => [index, lane]));
  if (!lanes.length) return;
  $("timeline").hidden = false;
  const height = 26 * lanes.length + 24, side = 110;
  const svg = draw("svg", { height, role: "img", "aria-label": "Timeline" });
  $("lanes").append(svg);
  const starts = runs.map((run) => Math.min(...run.spans.map((span) => span[1])));
  const longest = Math.max(...runs.map((_, run) => clock(run) || 0)) || 1;
  new ResizeObserver(() => {
    const width = svg.clientWidth || 600;
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.replaceChildren();
    const x = (seconds) => side + (width - side - 30) * seconds / longest;
    for (const at of moments(0, longest, Math.max(1, width / 130))) {
      svg.append(draw("line", { class: "axis", x1: x(at), x2: x(at), y1: 0, y2: height - 20 }), draw("text", { x: x(at), y: height - 5, "text-anchor": "middle" }, lasting(at)));
    }
    lanes.forEach(([run, lane], place) => {
      svg.append(draw("text", { x: side - 10, y: 26 * place + 17, "text-anchor": "end" }, lane));
      for (const [, from, until, text] of runs[run].spans.filter((span) => span[0] === lane)) {
        const [left, right] = [x(from - starts[run]), x(until - starts[run])];
        const took = until > from ? `, ${lasting(until - from)}` : "";
        svg.append(draw("rect", { class: lane === "failed" ? "bad" : styles[run], x: left, y: 26 * place + 5, width: Math.max(3, right - left), height: 16, rx: 3, opacity: .85 },
          draw("title", {}, `${text} (at ${lasting(from - starts[run])}${took})`)));
      }
    });
  }).observe(svg);
}

function split() { // where the time went
  const phases = [...new Set(runs.flatMap((run) => Object.keys(run.split)))];
  if (!phases.length) return;
  $("timeline").hidden = false;
  runs.forEach((run, index) => {
    const all = Object.values(run.split).reduce((sum, seconds) => sum + seconds, 0);
    if (!all) return;
    const bar = make("div", { class: "bar" }), legend = make("div", { class: "legend" }, ...two ? [named(index)] : []);
    for (const [phase, seconds] of Object.entries(run.split)) {
      const colour = phase === "other" ? "p8" : `p${phases.indexOf(phase) % 8}`;
      const text = `${phase} ${lasting(seconds)}, ${Math.round(100 * seconds / all)} %`;
      bar.append(make("i", { class: colour, style: `flex: ${seconds} 0 0`, title: text }));
      legend.append(make("span", {}, make("i", { class: colour }), text));
    }
    $("split").append(bar, legend);
  });
}

// ---- settings

function records() {
  for (const part of ["spec", "result", "about"]) {
    if (!runs.some((run) => Object.keys(run[part]).length)) continue;
    $("tables").append(table([part, ...two ? runs.map((run) => run.run) : [""]], union(runs.map((run) => run[part]))));
  }
}

themes($("theme"));
curves();
pictures();
timeline();
split();
records();
