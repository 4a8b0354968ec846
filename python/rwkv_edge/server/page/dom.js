// SPDX-License-Identifier: Apache-2.0
// Elements from code. Text only ever becomes a text node: nothing here reads HTML.

/** An element. `props`: `on` + event, `data`, `aria`, `class`; others as properties or attributes. */
export function h(tag, props, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "data") Object.assign(made.dataset, value);
    else if (name === "aria") {
      for (const [key, said] of Object.entries(value)) made.setAttribute(`aria-${key}`, said);
    } else if (name === "class") made.className = value;
    else made.setAttribute(name, value === true ? "" : value);
  }
  // One by one: a long list has no room among a function's arguments.
  for (const child of children.flat()) {
    if (child !== null && child !== undefined && child !== false) made.append(child);
  }
  return made;
}

/** An element of SVG. */
export function s(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// Drawn on a grid of 20 x 20 with a stroke of 1.6.
const ICONS = {
  menu: "M3 6h14M3 10h14M3 14h9",
  plus: "M10 4v12M4 10h12",
  open: "M10 13V4M6.5 7.5 10 4l3.5 3.5M4 13v2.5A1.5 1.5 0 0 0 5.5 17h9a1.5 1.5 0 0 0 1.5-1.5V13",
  save: "M10 4v9M6.5 9.5 10 13l3.5-3.5M4 14v1.5A1.5 1.5 0 0 0 5.5 17h9a1.5 1.5 0 0 0 1.5-1.5V14",
  settings: "M3 6h7M14 6h3M3 14h3M10 14h7M12 4v4M8 12v4",
  moon: "M16.5 11.8A6.8 6.8 0 0 1 8.2 3.5a6.8 6.8 0 1 0 8.3 8.3Z",
  sun: "M10 6.8a3.2 3.2 0 1 0 0 6.4 3.2 3.2 0 0 0 0-6.4ZM10 2.2v1.6M10 16.2v1.6M2.2 10h1.6M16.2 10h1.6M4.5 4.5l1.1 1.1M14.4 14.4l1.1 1.1M4.5 15.5l1.1-1.1M14.4 5.6l1.1-1.1",
  copy: "M7.5 7.5h8v9h-8zM12.5 7.5v-4h-8v9h3",
  done: "M4.5 10.5 8.5 14.5 15.5 6",
  again: "M15.8 8.2A6.2 6.2 0 1 0 16 12M16 4v4.4h-4.4",
  edit: "M4 16l.8-3.4 8.4-8.4 2.6 2.6-8.4 8.4zM11.6 5.8l2.6 2.6",
  rewind: "M7.5 4.5 3.5 8.5l4 4M3.5 8.5h8a5 5 0 0 1 0 8H9",
  beside: "M3.5 4h5.5v12H3.5zM11 4h5.5v12H11z",
  back: "M12 5l-5 5 5 5",
  forth: "M8 5l5 5-5 5",
  down: "M10 4v12M5 11l5 5 5-5",
  send: "M10 16V4M5 9l5-5 5 5",
  stop: "M6 6h8v8H6z",
  bin: "M4 6h12M8 6V4h4v2M5.5 6l.7 10h7.6l.7-10",
  tree: "M6 4.5v11M6 12c0-4 8-1.5 8-6.5M6 16.5h.01M6 3.5h.01M14 4.5h.01",
  close: "M5 5l10 10M15 5 5 15",
  warn: "M10 3.5 17.5 16h-15zM10 8.5v3.5M10 14h.01",
};

export function icon(name) {
  const path = s("path", { d: ICONS[name] });
  return s("svg", { viewBox: "0 0 20 20", class: "icon", "aria-hidden": "true" }, path);
}

/** A button. `key` says which one it is, so that focus finds it when its surroundings are redrawn. */
export function button(label, { name, text, key, act, ...props }) {
  const made = h("button", { type: "button", onclick: act, data: key ? { key } : {}, ...props });
  if (name) made.append(icon(name));
  if (text) made.append(h("span", null, text));
  if (text !== label) {
    made.setAttribute("aria-label", label);
    made.title = label;
  }
  return made;
}

/** Copies a text. The clipboard's own interface is missing on plain HTTP beyond this machine. */
export async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = h("textarea", { class: "unseen" });
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

export function copyButton(label, text, props) {
  const made = button(label, {
    name: "copy",
    ...props,
    act: async () => {
      await copy(text());
      made.replaceChild(icon("done"), made.querySelector("svg"));
      made.classList.add("is-done");
      setTimeout(() => {
        made.replaceChild(icon("copy"), made.querySelector("svg"));
        made.classList.remove("is-done");
      }, 1600);
    },
  });
  return made;
}

const number = new Intl.NumberFormat("en");

export const count = (value) => number.format(Math.round(value));
export const many = (value, one, more = `${one}s`) => `${count(value)} ${value === 1 ? one : more}`;

/** Bytes for people: 204 kB, 6.3 MB. */
export function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (value >= 999.5 && unit + 1 < units.length) [value, unit] = [value / 1000, unit + 1];
  return `${value < 9.95 && unit ? value.toFixed(1) : count(value)} ${units[unit]}`;
}

/** The beginning of a text, in one line. */
export function brief(text, most = 60) {
  const line = text.slice(0, 4 * most).replace(/\s+/g, " ").trim();
  return line.length > most ? `${line.slice(0, most - 1).trimEnd()}…` : line;
}
