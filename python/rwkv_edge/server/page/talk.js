// SPDX-License-Identifier: Apache-2.0
// The conversation up to the current node, as it is read. `acts` are what its buttons do.

import { brief, button, copyButton, count, h, many } from "./dom.js";
import { show } from "./markdown.js";
import { children, path } from "./tree.js";

const EXAMPLES = [
  { said: "Tell me a short story.", number: 3, why: "Three answers from one state, side by side" },
  { said: "My name is Anna.", number: 1, why: "Then go back, be Tom, and ask both for your name" },
  { said: "What is RWKV?", number: 1, why: "How a mind can stay as small as it is" },
];

/** Draws all of it. What did not change stays the element that it was. */
export function drawTalk(target, tree, props, acts) {
  const focused = document.activeElement?.dataset?.key;
  const before = new Map([...target.children].map((each) => [each.dataset.id, each]));
  const turns = path(tree, tree.current);
  const made = turns.map((node, i) => {
    const beside = besideOf(tree, node);
    const last = i === turns.length - 1;
    const sign = JSON.stringify([beside, last, children(tree, node.parent).length, tree.current === node.id]);
    const old = before.get(node.id);
    if (old?.dataset.sign === sign) return old;
    const turn = drawTurn(tree, node, beside, i + 1, last, acts);
    turn.dataset.id = node.id;
    turn.dataset.sign = sign;
    return turn;
  });
  if (tree.root.system || tree.root.mind) made.unshift(opening(tree));
  if (!turns.length) made.push(empty(tree, props, acts));
  const later = children(tree, tree.current);
  if (later.length) made.push(onward(later, acts));
  const kept = new Set(made);
  for (const each of [...target.children]) if (!kept.has(each)) each.remove();
  made.forEach((each, i) => {
    if (target.children[i] !== each) target.insertBefore(each, target.children[i] ?? null);
  });
  if (focused && !document.activeElement?.dataset?.key) {
    target.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
  }
}

/** The nodes that are shown in the place of one: itself, or all answers to its text. */
function besideOf(tree, node) {
  const twins = children(tree, node.parent).filter((each) => each.said === node.said);
  return tree.spread[node.parent ?? "root"] && twins.length > 1 ? twins : [node];
}

function opening(tree) {
  const { system, mind } = tree.root;
  if (mind) {
    const read = mind.tokens === null ? "" : ` It has read ${many(mind.tokens, "token")}.`;
    return h("div", { class: "opening", data: { id: "opening" } },
      h("p", null, h("b", null, mind.name), ` goes on here.${read} What was said is in the mind, not in the file.`));
  }
  return h("details", { class: "opening", data: { id: "opening" } },
    h("summary", null, "System prompt"), h("p", { class: "said-text" }, system));
}

function empty(tree, props, acts) {
  const mind = tree.root.mind;
  return h(
    "section",
    { class: "empty", aria: { labelledby: "empty-name" } },
    h("h2", { id: "empty-name" }, mind ? "Go on where it stopped." : "Talk, rewind, branch."),
    h(
      "p",
      null,
      mind
        ? "Ask what it remembers."
        : "However much is said, the model keeps it in a state of one size. Go back to any point, go on from it twice, or take it away as a file.",
    ),
    !mind &&
      h("ul", { class: "examples" },
        EXAMPLES.map(({ said, number, why }) =>
          h("li", null, h("button", { type: "button", onclick: () => acts.example(said, number) },
            h("b", null, said), h("small", null, why))))),
    !props && h("p", { class: "hint" }, "The server has not answered yet."),
  );
}

/** What was said later, where the current node is an earlier one. */
function onward(later, acts) {
  return h(
    "div",
    { class: "onward", role: "group", aria: { label: "What was said from here" } },
    h("span", null, later.length === 1 ? "It went on here:" : `It went on ${later.length} times:`),
    later.map((node) =>
      button(`Follow: ${brief(node.said, 40)}`, {
        name: "forth",
        text: brief(node.said, 32),
        key: `follow-${node.id}`,
        act: () => acts.follow(node.id),
      })),
  );
}

function drawTurn(tree, node, beside, number, last, acts) {
  const many = beside.length > 1;
  return h(
    "article",
    { class: "turn", aria: { label: `Turn ${number}` } },
    h("div", { class: "said" },
      h("h2", { class: "unseen" }, "You said"),
      h("p", { class: "said-text" }, node.said),
      button("Edit and ask again", { name: "edit", class: "quiet", key: `edit-${node.id}`, act: () => acts.edit(node.id) })),
    h("div", many ? { class: "answers are-beside", role: "group", tabindex: "0", aria: { label: "Answers side by side" } } : { class: "answers" },
      beside.map((each, i) => drawAnswer(tree, each, { many, i, of: beside.length, last }, acts))),
  );
}

function drawAnswer(tree, node, { many: beside, i, of, last }, acts) {
  const here = tree.current === node.id;
  const writing = node.status === "writing";
  const text = h("div", { class: "text" });
  show(text, node.answer);
  const label = beside ? `Answer ${i + 1} of ${of}` : "Answer";
  return h(
    "section",
    {
      class: `answer${here && beside ? " is-chosen" : ""}${writing ? " is-writing" : ""}`,
      aria: { label, busy: writing, ...(here && beside ? { current: "true" } : {}) },
      data: { node: node.id },
    },
    beside && h("span", { class: "number", aria: { hidden: "true" } }, String(i + 1)),
    thoughtOf(node),
    text,
    writing && !node.answer && h("p", { class: "waiting" }, h("i"), h("i"), h("i"), h("span", { class: "unseen" }, "Waiting for the answer")),
    noteOf(node, acts),
    !writing && actions(tree, node, { beside, here, last }, acts),
  );
}

function thoughtOf(node) {
  if (!node.thought) return null;
  const thinks = node.status === "writing" && !node.answer;
  return h("details", { class: "thought" },
    h("summary", null, thinks ? "Thinking…" : "Thoughts"),
    h("p", { class: "said-text" }, node.thought));
}

function noteOf(node, acts) {
  const notes = { length: "The answer reached its longest length.", stopped: "Stopped." };
  const text = node.note || notes[node.status];
  if (!text) return [];
  return [h("p", { class: `note${node.status === "broken" ? " is-bad" : ""}` }, text, " ",
    button("Continue the answer", { text: "Continue", class: "link", key: `more-${node.id}`, act: () => acts.more(node.id) }))];
}

function actions(tree, node, { beside, here, last }, acts) {
  const siblings = children(tree, node.parent);
  const at = siblings.indexOf(node);
  const twins = siblings.filter((each) => each.said === node.said).length;
  const spread = Boolean(tree.spread[node.parent ?? "root"]);
  const one = (name, label, act, more) => button(label, { name, class: "quiet", key: `${name}-${node.id}`, act, ...more });
  return h(
    "div",
    { class: "acts", role: "group", aria: { label: "This answer" } },
    !beside && siblings.length > 1 &&
      h("span", { class: "pager" },
        one("back", "The branch before", () => acts.follow(siblings[at - 1].id), { disabled: at === 0 }),
        h("span", { aria: { label: `Branch ${at + 1} of ${siblings.length}` } }, `${at + 1}/${siblings.length}`),
        one("forth", "The next branch", () => acts.follow(siblings[at + 1].id), { disabled: at + 1 === siblings.length })),
    copyButton("Copy the answer", () => node.answer, { class: "quiet", key: `copy-${node.id}` }),
    !beside && one("again", "Answer again, beside this", () => acts.again(node.id)),
    (!beside || here) && twins > 1 &&
      one("beside", spread ? "Show one answer" : "Show the answers side by side", () => acts.spread(node.id), { "aria-pressed": String(spread) }),
    one("save", "Save the mind behind this answer", () => acts.save(node.id)),
    (beside ? !here : !last) &&
      button("Go on from here", { name: "rewind", text: "Go on from here", class: "go-on", key: `go-${node.id}`, act: () => acts.choose(node.id) }),
    here && beside && h("span", { class: "chosen" }, "Going on from this one"),
    statsOf(node, beside),
  );
}

function statsOf({ stats }, short) {
  if (!stats) return null;
  const text = many(stats.wrote, "token") + (short ? "" : ` · ${count(stats.rate)}/s`);
  return h("small", { class: "stats", title: `Read ${many(stats.read, "new token")} and wrote ${many(stats.wrote, "token")}` }, text);
}

/** While an answer comes: only what has changed. */
export function update(target, node) {
  const place = target.querySelector(`[data-node="${node.id}"]`);
  if (!place) return;
  const text = place.querySelector(".text");
  if (node.answer) place.querySelector(".waiting")?.remove();
  show(text, node.answer);
  if (!node.thought) return;
  const old = place.querySelector(".thought");
  if (old) {
    old.querySelector("p").textContent = node.thought;
    old.querySelector("summary").textContent = node.answer ? "Thoughts" : "Thinking…";
  } else {
    place.insertBefore(thoughtOf(node), text);
  }
}
