"use strict";
// What both pages need. Texts of a run go into the page as text, never as markup.

const $ = (id) => document.getElementById(id);

function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value !== undefined && value !== null && value !== false) {
      element.setAttribute(name, value === true ? "" : value);
    }
  }
  element.append(...children);
  return element;
}

function words(value) { // any JSON value, for people
  if (value === null || value === undefined) return "–";
  if (typeof value === "string") return value;
  if (typeof value === "number") return number(value);
  return JSON.stringify(value);
}

function number(value) {
  if (Number.isInteger(value)) return String(value);
  return String(Number(value.toPrecision(6)));
}

function table(head, rows) { // of texts; a row whose values differ is marked
  const body = make("tbody");
  for (const [key, ...values] of rows) {
    const differs = values.length > 1 && values.some((value) => value !== values[0]);
    body.append(make("tr", { class: differs && "differs" }, make("th", { scope: "row" }, key),
      ...values.map((value) => make("td", { dir: "auto" }, value))));
  }
  const found = make("table", {}, body);
  if (head) found.prepend(make("thead", {}, make("tr", {}, ...head.map((text) => make("th", { scope: "col" }, text)))));
  return found;
}

function union(documents) { // rows of a table over several documents
  const keys = [...new Set(documents.flatMap((one) => Object.keys(one || {})))];
  return keys.map((key) => [key, ...documents.map((one) => words((one || {})[key]))]);
}

function swipes(element, moved) { // calls moved(-1 | 1) when a finger goes right or left
  let start = null;
  element.addEventListener("touchstart", (event) => {
    start = event.touches.length === 1 ? event.touches[0] : null;
  }, { passive: true });
  element.addEventListener("touchend", (event) => {
    const end = event.changedTouches[0];
    if (!start || event.touches.length) return;
    const [x, y] = [end.clientX - start.clientX, end.clientY - start.clientY];
    start = null;
    if (Math.abs(x) > 40 && Math.abs(x) > 1.5 * Math.abs(y)) moved(x > 0 ? -1 : 1);
  }, { passive: true });
}

function themes(button) { // remembered where the browser lets a page do so
  const key = "launcher-theme";
  const dark = () => {
    const chosen = document.documentElement.dataset.theme;
    return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  };
  const show = (theme) => {
    if (theme) document.documentElement.dataset.theme = theme;
    button.textContent = dark() ? "☀" : "☾";
    button.setAttribute("aria-label", dark() ? "Light" : "Dark");
    button.title = button.getAttribute("aria-label");
  };
  let kept = null;
  try { kept = localStorage.getItem(key); } catch { /* file:// of some browsers */ }
  show(kept === "dark" || kept === "light" ? kept : null);
  button.addEventListener("click", () => {
    const theme = dark() ? "light" : "dark";
    try { localStorage.setItem(key, theme); } catch { /* as above */ }
    show(theme);
  });
}
