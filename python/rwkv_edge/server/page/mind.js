// SPDX-License-Identifier: Apache-2.0
// The panel beside a conversation: how much memory it takes, and its tree.

import { brief, bytes, count, h, many, s } from "./dom.js";
import { path, rows } from "./tree.js";

const ROW = 46; // pixels, as in style.css
const LANE = 16;
const MOST_LANES = 8;

/** What the chip in the bar says. */
export function chip(tree, props) {
  const size = sizeOf(tree, props);
  const read = readOf(tree);
  return size === null ? "Mind" : read ? `${bytes(size)} · ${count(read)} tokens` : bytes(size);
}

/** Bytes of the state that is gone on from. All of a model's states have the same size. */
function sizeOf(tree, props) {
  const node = tree.current === null ? null : tree.nodes[tree.current];
  return node?.bytes ?? tree.root.mind?.bytes ?? props?.model.state_bytes ?? null;
}

function readOf(tree) {
  const known = path(tree, tree.current).findLast((node) => node.tokens !== null);
  return known?.tokens ?? tree.root.mind?.tokens ?? 0;
}

export function drawMeter(target, tree, props, stored) {
  const size = sizeOf(tree, props);
  if (size === null) {
    target.replaceChildren();
    return;
  }
  const read = readOf(tree);
  const points = path(tree, tree.current)
    .filter((node) => node.tokens !== null && node.bytes !== null)
    .map((node) => [node.tokens, node.bytes]);
  // What attention would keep: a key and a value in each layer for each token, in 16 bits.
  const slope = props ? 4 * props.model.n_layer * props.model.n_embd : 0;
  const grown = slope * read;
  target.replaceChildren(
    h(
      "p",
      { class: "figure" },
      h("strong", null, bytes(size)),
      h("span", null, read ? `after ${many(read, "token")}` : "before the first word"),
    ),
    plot(size, read, points, slope),
    h(
      "p",
      { class: "legend" },
      h("span", { class: "flat" }, "This mind stays at ", bytes(size)),
      slope > 0 &&
        h(
          "span",
          {
            class: "grows",
            title: "Keys and values of a transformer with these layers and this width, in 16 bits",
          },
          "Attention would keep ",
          bytes(grown),
        ),
    ),
    h(
      "p",
      { class: "hint" },
      stored.count
        ? `${many(stored.count, "mind")} on the server, ${bytes(stored.bytes)} in all.`
        : "No mind is stored on the server yet.",
    ),
  );
}

/** Bytes over tokens. Text would be stretched with it, so it has none. */
function plot(size, read, points, slope) {
  const width = 280;
  const height = 84;
  const across = Math.max(read, 64);
  const most = Math.max(1.6 * size, 1.08 * slope * read);
  const x = (tokens) => (2 + ((width - 4) * tokens) / across).toFixed(1);
  const y = (value) => (height - 2 - ((height - 6) * value) / most).toFixed(1);
  const end = Math.min(across, most / (slope || 1));
  const drawing = s(
    "svg",
    {
      viewBox: `0 0 ${width} ${height}`,
      role: "img",
      "aria-label": `Memory over the length of the conversation: ${bytes(size)} from the first token to token ${count(read)}`,
    },
    s("path", { class: "base", d: `M0 ${height - 1}H${width}` }),
    s("path", { class: "area", d: `M${x(0)} ${y(0)}V${y(size)}H${x(across)}V${y(0)}Z` }),
  );
  if (slope)
    drawing.append(
      s("path", { class: "grows", d: `M${x(0)} ${y(0)}L${x(end)} ${y(end * slope)}` }),
    );
  drawing.append(s("path", { class: "flat", d: `M${x(0)} ${y(size)}H${x(across)}` }));
  for (const [tokens, value] of points.slice(-200)) {
    drawing.append(s("circle", { class: "point", cx: x(tokens), cy: y(value), r: 3 }));
  }
  return drawing;
}

// ---- the tree -----------------------------------------------------------------------------------

export function drawTree(target, tree, { gone, choose }) {
  const focused = target.contains(document.activeElement)
    ? document.activeElement.dataset.id
    : null;
  const made = rows(tree).map((row) => rowOf(tree, row, gone, choose));
  target.replaceChildren(...made);
  const current = made.find((each) => each.getAttribute("aria-selected") === "true");
  current.tabIndex = 0;
  if (focused !== null) (made.find((each) => each.dataset.id === focused) ?? current).focus();
  // Only the panel is scrolled, and only where it has to be.
  const box = target.parentElement;
  const top = current.offsetTop - box.offsetTop;
  if (top < box.scrollTop || top + ROW + 16 > box.scrollTop + box.clientHeight) {
    box.scrollTop = top - box.clientHeight / 2;
  }
}

function rowOf(tree, row, gone, choose) {
  const node = row.id === null ? null : tree.nodes[row.id];
  const here = row.id === tree.current;
  const [label, more] = node ? [brief(node.said), answerOf(node)] : beginning(tree);
  const lost = gone(node);
  return h(
    "button",
    {
      type: "button",
      role: "treeitem",
      tabindex: "-1",
      class: `row${here ? " is-here" : ""}${row.lit ? " is-lit" : ""}`,
      aria: { level: row.level, selected: here },
      title: lost
        ? "The server has forgotten this state: going on from here reads the text again."
        : null,
      data: { id: row.id ?? "" },
      onclick: () => choose(row.id),
    },
    lines(row, here, lost),
    h("span", { class: "words" }, h("b", null, label), h("small", null, more)),
  );
}

function answerOf(node) {
  if (node.status === "writing") return "…";
  return brief(node.answer.slice(0, 400).replace(/[*_`#>|~]+/g, ""), 70) || "No answer";
}

function beginning(tree) {
  const { mind, system } = tree.root;
  if (mind)
    return [
      mind.name,
      mind.tokens === null ? "From a file" : `From a file, ${many(mind.tokens, "token")}`,
    ];
  return ["Beginning", system ? brief(system, 70) : "Nothing was read yet"];
}

/** Of one row: a line in each lane to the left, and what comes to and goes from its point. */
function lines({ lane, passing, straight, lit, goesOn, below, id }, here, lost) {
  const middle = ROW / 2;
  const at = (number) => 10 + LANE * Math.min(number, MOST_LANES);
  const drawing = s("svg", { width: at(lane) + 12, height: ROW, "aria-hidden": "true" });
  const line = (d, bright) => drawing.append(s("path", { d, class: bright ? "lit" : "dim" }));
  passing.forEach((bright, number) => line(`M${at(number)} 0V${ROW}`, bright));
  const x = at(lane);
  if (id !== null) {
    if (straight) line(`M${x} 0V${middle}`, lit);
    else line(`M${at(lane - 1)} 0C${at(lane - 1)} ${middle} ${x} 4 ${x} ${middle}`, lit);
  }
  if (below) line(`M${x} ${middle}V${ROW}`, goesOn);
  if (here) drawing.append(s("circle", { class: "halo", cx: x, cy: middle, r: 9 }));
  const kind = `${lit ? "lit" : "dim"}${lost ? " is-lost" : ""}`;
  drawing.append(s("circle", { class: kind, cx: x, cy: middle, r: here ? 5 : 4 }));
  return drawing;
}

/** Arrow keys in the tree. */
export function moveInTree(event) {
  const all = [...event.currentTarget.querySelectorAll(".row")];
  const at = all.indexOf(document.activeElement);
  const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: all.length - 1 }[event.key];
  if (to === undefined || !all[to]) return;
  event.preventDefault();
  all.forEach((each) => (each.tabIndex = -1));
  all[to].tabIndex = 0;
  all[to].focus();
}
