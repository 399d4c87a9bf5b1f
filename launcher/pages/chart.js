// Line charts as SVG: several runs over each other, smoothing, a logarithmic axis, values under the
// pointer. Knows nothing of runs but a name and points.

const SVG = "http://www.w3.org/2000/svg";
const LEFT = 56, RIGHT = 12, TOP = 8, BOTTOM = 22;

function draw(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function smoothed(values, weight) { // a moving average that has no bias at its start
  let sum = 0, norm = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = weight * sum + (1 - weight) * value;
    norm = weight * norm + (1 - weight);
    return sum / norm;
  });
}

function ticks(from, until, count) { // round numbers between
  const rough = (until - from) / Math.max(1, count) || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const found = [];
  for (let at = Math.ceil(from / step - 1e-9) * step; at <= until + step * 1e-6; at += step) found.push(Number(at.toPrecision(12)));
  return found;
}

function moments(from, until, count) { // round spans of time between
  const sizes = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400];
  const step = sizes.find((size) => (until - from) / size <= count);
  if (until - from < 2 || !step) return ticks(from, until, count);
  const found = [];
  for (let at = Math.ceil(from / step) * step; at <= until; at += step) found.push(at);
  return found;
}

function powers(from, until) { // round numbers of a logarithmic axis
  const found = [];
  for (let power = Math.floor(Math.log10(from)); power <= Math.ceil(Math.log10(until)); power++) {
    for (const factor of until / from > 50 ? [1] : [1, 2, 5]) {
      const at = factor * 10 ** power;
      if (at >= from * .999 && at <= until * 1.001) found.push(at);
    }
  }
  return found.length > 1 ? found : ticks(from, until, 4).filter((at) => at > 0);
}

function short(value) {
  const size = Math.abs(value);
  if (value === 0) return "0";
  if (size >= 1e6 || size < 1e-3) return value.toExponential(1).replace(".0e", "e").replace("e+", "e");
  if (size >= 1e4) return `${Number((value / 1000).toPrecision(4))}k`;
  return String(Number(value.toPrecision(4)));
}

function lasting(seconds) {
  const whole = Math.round(seconds);
  if (Math.abs(seconds) < 60) return `${Number(seconds.toPrecision(3))}s`;
  if (whole < 3600) return `${Math.floor(whole / 60)}m ${String(whole % 60).padStart(2, "0")}s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)}h ${String(Math.floor(whole % 3600 / 60)).padStart(2, "0")}m`;
  return `${Math.floor(whole / 86400)}d ${String(Math.floor(whole % 86400 / 3600)).padStart(2, "0")}h`;
}

// lines: [{style, xs, ys}], ys with null for what is not told; options: {name, weight, log, along, height}
function chart(lines, options) {
  const at = make("span", { class: "at" });
  const box = make("div", { class: options.wide ? "chart wide" : "chart" }, make("h3", {}, options.name, at));
  const svg = draw("svg", { height: options.height, role: "img", "aria-label": options.name });
  box.append(svg);
  const kept = lines.map((line) => {
    const points = line.xs.map((x, index) => [x, line.ys[index]])
      .filter(([x, y]) => x !== null && y !== null && y !== undefined && (!options.log || y > 0));
    const ys = points.map(([, y]) => y);
    return { style: line.style, xs: points.map(([x]) => x), raw: ys, ys: options.weight ? smoothed(ys, options.weight) : ys };
  }).filter((line) => line.xs.length);

  const paint = () => {
    const width = svg.clientWidth || 600, height = options.height;
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.replaceChildren();
    const all = kept.flatMap((line) => line.raw), xs = kept.flatMap((line) => line.xs);
    let [low, high] = [Math.min(...all), Math.max(...all)];
    if (low === high) { low -= Math.abs(low) * .1 || 1; high += Math.abs(high) * .1 || 1; }
    const scale = options.log ? Math.log : (value) => value;
    if (options.log) low = Math.max(low, 1e-300);
    const [first, last] = [Math.min(...xs), Math.max(...xs)];
    const pad = (scale(high) - scale(low)) * .06;
    const x = (value) => LEFT + (width - LEFT - RIGHT) * (last > first ? (value - first) / (last - first) : .5);
    const y = (value) => TOP + (height - TOP - BOTTOM) * (scale(high) + pad - scale(value)) / (scale(high) - scale(low) + 2 * pad);
    for (const value of options.log ? powers(low, high) : ticks(low, high, Math.max(3, height / 36))) {
      svg.append(draw("line", { class: "axis", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }),
        draw("text", { x: LEFT - 8, y: y(value) + 4, "text-anchor": "end" }, short(value)));
    }
    const along = options.along === "time" ? lasting : short;
    const marks = last > first ? (options.along === "time" ? moments : ticks)(first, last, Math.max(1, width / 110)) : [first];
    for (const value of options.along === "step" ? marks.filter(Number.isInteger) : marks) {
      svg.append(draw("text", { x: x(value), y: height - 5, "text-anchor": "middle" }, along(value)));
    }
    const path = (line, ys) => line.xs.map((value, index) => `${index ? "L" : "M"}${x(value).toFixed(1)} ${y(ys[index]).toFixed(1)}`).join("");
    for (const line of kept) {
      if (line.xs.length === 1) svg.append(draw("circle", { class: line.style, cx: x(line.xs[0]), cy: y(line.ys[0]), r: 3 }));
      if (options.weight) svg.append(draw("path", { class: `${line.style} raw`, d: path(line, line.raw) }));
      svg.append(draw("path", { class: line.style, d: path(line, line.ys) }));
    }
    const cursor = draw("g", {});
    svg.append(cursor);
    const point = (event) => {
      const wanted = first + (event.clientX - svg.getBoundingClientRect().left - LEFT) / (width - LEFT - RIGHT) * (last - first);
      const found = kept.map((line) => [line, line.xs.reduce((best, value, index) => Math.abs(value - wanted) < Math.abs(line.xs[best] - wanted) ? index : best, 0)]);
      cursor.replaceChildren(...found.flatMap(([line, index], which) => [
        ...which ? [] : [draw("line", { class: "cursor", x1: x(line.xs[index]), x2: x(line.xs[index]), y1: TOP, y2: height - BOTTOM })],
        draw("circle", { class: line.style, cx: x(line.xs[index]), cy: y(line.ys[index]), r: 3.5 }),
      ]));
      at.replaceChildren(`${options.along === "time" ? "" : "step "}${along(found[0][0].xs[found[0][1]])}: `,
        ...found.flatMap(([line, index], which) => [...which ? ["  "] : [], make("i", { class: `dot ${line.style}` }), number(line.ys[index])]));
    };
    svg.onpointermove = svg.onpointerdown = point;
    svg.onpointerleave = () => { cursor.replaceChildren(); at.replaceChildren(); };
  };
  new ResizeObserver(paint).observe(svg);
  return box;
}
