// SPDX-License-Identifier: Apache-2.0
// The page: what is shown, what was said, and what the server has to do for it.

import { Refusal, call, chunks, json, key, sentence } from "./api.js";
import { brief, button, bytes, h, icon, many } from "./dom.js";
import { chip, drawMeter, drawTree, moveInTree } from "./mind.js";
import * as store from "./store.js";
import { drawTalk, update } from "./talk.js";
import { add, below, children, choose, drop, furthest, newTree, path, states, title } from "./tree.js";

const byId = (id) => document.getElementById(id);
const view = Object.fromEntries(
  ["about", "alert", "ask", "branch", "chip", "count", "dark", "drop", "list", "meter", "mind", "model",
    "scroll", "send", "settings", "side", "stop", "text", "think", "toast", "to-end", "tree", "turns",
    "veil", "voice"].map((id) => [id, byId(id)]),
);

let props = null; // what the server runs
let trees = [];
let tree = newTree(); // the one that is shown
let running = null; // the answers that are being written: {tree, nodes, abort}
let editing = null; // the node whose text is changed
let known = new Map(); // states on the server: id -> bytes

// ---- drawing ------------------------------------------------------------------------------------

const acts = {
  example(said, number) {
    view.count.value = String(number);
    ask(said, tree.current, number);
  },
  choose(id) {
    settle();
    choose(tree, id);
    keep();
    draw();
    focusText();
  },
  follow(id) {
    settle();
    choose(tree, furthest(tree, id));
    keep();
    draw();
  },
  edit(id) {
    edit(id);
  },
  again(id) {
    const { said, parent } = tree.nodes[id];
    ask(said, parent, 1);
  },
  spread(id) {
    const parent = tree.nodes[id].parent ?? "root";
    tree.spread[parent] = !tree.spread[parent];
    keep();
    draw();
  },
  save: (id) => saveMind(id),
  more: (id) => goOn(id),
};

function draw() {
  drawTalk(view.turns, tree, props, acts);
  drawMeter(view.meter, tree, props, storedSum());
  drawTree(view.tree, tree, { gone: isGone, choose: acts.choose });
  view.chip.textContent = chip(tree, props);
  drawList();
  drawDock();
  if (following) toEnd();
}

function drawList() {
  const order = [...trees].sort((one, other) => other.updated - one.updated);
  const focused = document.activeElement?.dataset?.key;
  view.list.replaceChildren(
    ...order.map((each) =>
      h("li", null,
        h("button", {
          type: "button", class: "open", data: { key: `open-${each.id}` },
          aria: each === tree ? { current: "page" } : {}, onclick: () => open(each),
        }, h("span", null, brief(title(each), 48) || "New conversation"), h("small", null, ago(each.updated))),
        button(`Delete: ${brief(title(each), 30) || "New conversation"}`, { name: "bin", class: "quiet", act: () => erase(each) }))),
  );
  if (focused?.startsWith("open-")) view.list.querySelector(`[data-key="${focused}"]`)?.focus();
}

function ago(moment) {
  const minutes = Math.round((moment - Date.now()) / 60_000);
  const format = new Intl.RelativeTimeFormat("en", { numeric: "auto", style: "short" });
  if (minutes > -1) return "now";
  if (minutes > -60) return format.format(minutes, "minute");
  if (minutes > -60 * 24) return format.format(Math.round(minutes / 60), "hour");
  return format.format(Math.round(minutes / 60 / 24), "day");
}

function drawDock() {
  const busy = running !== null;
  view.send.hidden = busy;
  view.stop.hidden = !busy;
  view.send.disabled = !view.text.value.trim();
  const later = editing === null && children(tree, tree.current).length > 0;
  view.branch.hidden = editing === null && !later;
  view.branch.replaceChildren(
    icon(editing === null ? "rewind" : "edit"),
    h("span", null, editing === null ? "Going on from an earlier point: what you say opens a new branch." : "Changing what you said: it is asked again in a new branch."),
    editing === null
      ? button("Back to the end", { text: "Back to the end", class: "link", act: () => acts.follow(tree.current) })
      : button("Cancel", { text: "Cancel", class: "link", act: () => edit(null) }),
  );
}

let following = true; // whether the end is looked at, and new words are to be seen

/** To the last words; of answers side by side, to their beginnings. */
function endOf() {
  const last = view.turns.querySelector(".turn:last-of-type:has(.are-beside)");
  const top = last ? last.offsetTop - 24 : Infinity;
  return Math.min(view.scroll.scrollHeight, top);
}

function toEnd() {
  following = true;
  view.scroll.scrollTop = endOf();
}

let frame = 0;

/** New words of the answers, once a picture. */
function drawSoon() {
  frame ||= requestAnimationFrame(() => {
    frame = 0;
    if (running?.tree !== tree) return;
    for (const node of running.nodes) update(view.turns, node);
    if (following) toEnd();
  });
}

function complain(text) {
  view.alert.replaceChildren(...(text ? [icon("warn"), h("span", null, text),
    button("Dismiss", { name: "close", class: "quiet", act: () => complain("") })] : []));
}

let toasting = 0;

function tell(text) {
  view.toast.textContent = text;
  view.toast.classList.add("is-shown");
  clearTimeout(toasting);
  toasting = setTimeout(() => view.toast.classList.remove("is-shown"), 5000);
}

// ---- what is kept -------------------------------------------------------------------------------

let warned = false;
const tabs = new BroadcastChannel("rwkv-edge"); // tells other tabs which conversation was changed

tabs.addEventListener("message", async ({ data: id }) => {
  const found = await store.one(id);
  const old = trees.find((each) => each.id === id);
  if (old && running?.tree === old) return; // what is written here comes last
  trees = trees.filter((each) => each !== old);
  if (found) trees.push(found);
  if (tree === old) {
    if (editing !== null && !found?.nodes[editing]) edit(null);
    tree = found ?? newTree();
  }
  draw();
});

async function keep(which = tree) {
  if (!trees.includes(which)) return; // nothing was said yet, or it was deleted
  try {
    await store.save(which);
    tabs.postMessage(which.id);
  } catch {
    if (!warned) tell("This browser keeps nothing: a reload will lose the tree.");
    warned = true;
  }
}

function isGone(node) {
  return node !== null && node.status !== "writing" && !known.has(node.state);
}

function storedSum() {
  const own = states(tree).filter((state) => known.has(state));
  return { count: own.length, bytes: own.reduce((sum, state) => sum + known.get(state), 0) };
}

async function look() {
  const { data } = await json("v1/states");
  known = new Map(data.map((state) => [state.id, state.bytes]));
}

/** What is known of a node's state. */
async function learn(node) {
  const found = await json(`v1/states/${node.state}`);
  Object.assign(node, { tokens: found.tokens, bytes: found.bytes });
  known.set(node.state, found.bytes);
}

// ---- states -------------------------------------------------------------------------------------

const messagesOf = (node) => [
  { role: "user", content: node.said },
  { role: "assistant", content: node.answer },
];

/** The state to begin at; null where there is none. Makes it where the server has it no more. */
async function stateAt(which, id) {
  if (id === null) {
    const { root } = which;
    if (root.mind) return root.mind.state;
    if (root.system && !known.has(root.state)) {
      const made = await json("v1/states", { body: { messages: [{ role: "system", content: root.system }] } });
      root.state = made.id;
      known.set(made.id, made.bytes);
    }
    return root.state;
  }
  const node = which.nodes[id];
  if (!known.has(node.state)) {
    const forgotten = node.state !== null;
    const turns = await reread(which, id);
    if (forgotten && turns) tell(`The server had forgotten this mind: ${many(turns, "turn")} of text ${turns === 1 ? "was" : "were"} read again.`);
  }
  return node.state;
}

/** Read the text of a node anew, from the last state on the way there that the server still has.
 * Returns the number of turns that were read. */
async function reread(which, id) {
  await look();
  const way = path(which, id);
  let at = way.length;
  while (at > 0 && !known.has(way[at - 1].state)) at--;
  let from = at > 0 ? way[at - 1].state : null;
  if (from === null) from = await stateAt(which, null);
  const node = which.nodes[id];
  if (at < way.length) {
    const messages = way.slice(at).flatMap(messagesOf);
    const made = await json("v1/states", { body: { messages, from } });
    known.set(made.id, made.bytes);
    Object.assign(node, { state: made.id, tokens: made.tokens, bytes: made.bytes });
  }
  return way.length - at;
}

// ---- asking -------------------------------------------------------------------------------------

function settingsOf() {
  return JSON.parse(localStorage.getItem("rwkv-edge.settings") ?? "{}");
}

function bodyFor(count) {
  const { temperature, top_p, seed, max_tokens } = settingsOf();
  const asked = { stream: true, store: true, n: count, temperature, top_p, seed, max_tokens };
  if (view.think.value) asked.reasoning_effort = view.think.value;
  return asked;
}

/** Ask for so many answers to a text, behind a node. */
async function ask(said, parent, count) {
  if (running) return;
  complain("");
  const which = tree;
  if (!Object.keys(which.nodes).length && !which.root.mind) {
    which.root = { system: settingsOf().system ?? "", state: null, mind: null };
  }
  if (!trees.includes(which)) trees.push(which);
  localStorage.setItem("rwkv-edge.open", which.id);
  if (children(which, parent).some((node) => node.said !== said)) delete which.spread[parent ?? "root"];
  if (count > 1) which.spread[parent ?? "root"] = true;
  if (parent !== null) delete which.spread[which.nodes[parent].parent ?? "root"];
  const before = which.current;
  const nodes = Array.from({ length: count }, () => add(which, parent, said));
  choose(which, nodes[0].id);
  const messages = [{ role: "user", content: said }];
  const found = await write(which, nodes, (state) => ({ ...bodyFor(count), messages, state }), parent);
  if (!found) {
    // Nothing came: it is as if it had not been asked.
    for (const node of nodes) drop(which, node.id);
    if (!Object.keys(which.nodes).length) which.root.state = null;
    choose(which, before);
    if (which === tree && !view.text.value) setText(said);
  }
  keep(which);
  draw();
}

/** Let an answer go on that was stopped. It gets a new state. */
async function goOn(id) {
  if (running) return;
  complain("");
  const node = tree.nodes[id];
  const { status, note } = node;
  const which = tree;
  const messages = messagesOf(node);
  messages[1].prefix = true;
  Object.assign(node, { status: "writing", note: "" });
  const written = node.answer.length;
  await write(which, [node], (state) => ({ ...bodyFor(1), messages, state }), node.parent);
  if (node.status === "broken" && node.answer.length === written) Object.assign(node, { status, note });
  keep(which);
  draw();
}

/** Have answers written; returns whether any text came. Whatever ends it, the nodes are settled. */
async function write(which, nodes, body, parent) {
  const abort = new AbortController();
  running = { tree: which, nodes, abort };
  for (const node of nodes) node.state = null;
  view.voice.textContent = "";
  draw();
  toEnd();
  focusText(); // the button that asked for it may be gone
  const saving = setInterval(() => keep(which), 2000);
  let problem = null;
  try {
    await stream(nodes, body(await stateAt(which, parent)), abort.signal, async () => {
      // The server has forgotten where this begins.
      if (parent === null && which.root.mind) return null;
      known.delete(parent === null ? which.root.state : which.nodes[parent].state);
      return body(await stateAt(which, parent));
    });
  } catch (error) {
    problem = error;
  } finally {
    clearInterval(saving);
    running = null;
  }
  const stopped = problem?.name === "AbortError";
  if (problem && !stopped) {
    complain(sentence(problem));
    if (problem.status === 401) showSettings();
  }
  for (const node of nodes.filter((each) => each.status === "writing")) {
    node.status = stopped ? "stopped" : "broken";
    if (!stopped) node.note = problem ? sentence(problem) : "The answer did not end.";
  }
  const came = (node) => node.answer || node.status === "done" || node.status === "length";
  const found = nodes.some(came);
  for (const node of nodes) {
    if (found && !came(node)) drop(which, node.id);
  }
  if (found && which.current === parent) choose(which, nodes.find((node) => which.nodes[node.id]).id);
  if (found && trees.includes(which)) {
    const said = nodes.filter((node) => node.answer).map((node, i) => (nodes.length > 1 ? `Answer ${i + 1}: ${node.answer}` : node.answer));
    view.voice.textContent = said.join("\n");
    which.updated = Date.now();
    await Promise.all(nodes.filter((node) => which.nodes[node.id]).map((node) => file(which, node)));
  }
  return found;
}

/** See to it that a node has a state, and that its size is known. */
async function file(which, node) {
  try {
    if (node.state) await learn(node);
    else await reread(which, node.id);
  } catch {
    // Whoever goes on from here will see what is wrong.
  }
}

async function stream(nodes, body, signal, again) {
  try {
    for await (const chunk of chunks("v1/chat/completions", { body, signal })) {
      for (const choice of chunk.choices) {
        const node = nodes[choice.index];
        node.answer += choice.delta.content ?? "";
        node.thought += choice.delta.reasoning_content ?? "";
        if (!choice.finish_reason) continue;
        node.status = choice.finish_reason === "length" ? "length" : "done";
        node.state = chunk.state ?? null;
        const { prompt_n: read, predicted_n: wrote, predicted_per_second: rate } = chunk.timings;
        node.stats = { read, wrote, rate };
      }
      drawSoon();
    }
  } catch (error) {
    const next = error instanceof Refusal && error.code === "state_not_found" && (await again());
    if (!next) throw error;
    await stream(nodes, next, signal, async () => null);
  }
}

// ---- minds as files -----------------------------------------------------------------------------

async function saveMind(id) {
  const which = tree;
  try {
    let state = await stateAt(which, id);
    if (!state) {
      tell("Nothing was read yet: there is no mind to save.");
      return;
    }
    const fetched = () => call(`v1/states/${state}/file`);
    const response = await fetched().catch(async (error) => {
      if (error.code !== "state_not_found" || id === null) throw error;
      known.delete(state);
      state = await stateAt(which, id);
      return fetched();
    });
    const words = brief(title(which), 40).toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? ["mind"];
    offer(await response.blob(), `${words.join("-")}.state`);
    keep(which);
  } catch (error) {
    complain(sentence(error));
  }
}

function offer(blob, name) {
  const url = URL.createObjectURL(blob);
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/** Go on from a file. */
async function openMind(file) {
  complain("");
  try {
    const name = file.name.replace(/\.state$/, "").slice(0, 100);
    const made = await json(`v1/states?name=${encodeURIComponent(name)}`, { file });
    known.set(made.id, made.bytes);
    const opened = newTree({ name, state: made.id, tokens: made.tokens, bytes: made.bytes });
    trees.push(opened);
    open(opened);
    keep(opened);
    tell(`${name}: a mind of ${bytes(made.bytes)}.`);
  } catch (error) {
    complain(sentence(error));
  }
}

// ---- conversations ------------------------------------------------------------------------------

function open(which) {
  settle();
  tree = which;
  localStorage.setItem("rwkv-edge.open", tree.id);
  complain("");
  drawers.close();
  draw();
  toEnd();
  focusText();
}

/** Nothing is half done when something else is looked at. */
function settle() {
  if (editing !== null) edit(null);
}

async function erase(which) {
  const number = states(which).length;
  byId("confirm-text").textContent = `Delete “${brief(title(which), 60) || "New conversation"}”${number ? `, and ${many(number, "mind")} on the server` : ""}?`;
  const dialog = byId("confirm");
  dialog.returnValue = "no";
  dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  if (dialog.returnValue !== "yes") return;
  if (running?.tree === which) running.abort.abort();
  trees = trees.filter((each) => each !== which);
  if (tree === which) open(newTree());
  else draw();
  await store.remove(which.id).catch(() => {});
  tabs.postMessage(which.id);
  for (const state of states(which)) {
    known.delete(state);
    await call(`v1/states/${state}`, { method: "DELETE" }).catch(() => {}); // it may be gone already
  }
}

// ---- the text field -----------------------------------------------------------------------------

function setText(text) {
  view.text.value = text;
  fit();
  drawDock();
}

/** Not on touch screens, where a keyboard would cover the page. */
function focusText() {
  if (matchMedia("(hover: hover)").matches) view.text.focus({ preventScroll: true });
}

function fit() {
  view.text.style.height = "auto";
  view.text.style.height = `${view.text.scrollHeight}px`;
}

function edit(id) {
  if (id === null && editing !== null) setText("");
  editing = id;
  if (id !== null) {
    setText(tree.nodes[id].said);
    view.text.focus();
    view.text.setSelectionRange(view.text.value.length, view.text.value.length);
  }
  drawDock();
}

function submit() {
  const said = view.text.value.trim();
  if (!said || running) return;
  const parent = editing === null ? tree.current : tree.nodes[editing].parent;
  editing = null;
  setText("");
  ask(said, parent, Number(view.count.value));
}

view.ask.addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
view.text.addEventListener("input", () => {
  fit();
  view.send.disabled = !view.text.value.trim();
});
view.text.addEventListener("keydown", (event) => {
  if (event.isComposing) return; // the Enter of an input method
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    submit();
  } else if (event.key === "ArrowUp" && !view.text.value && tree.current !== null && !running) {
    event.preventDefault();
    edit(tree.current);
  }
});
view.stop.addEventListener("click", () => running?.abort.abort());
addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
  if (drawers.close()) return;
  if (running) running.abort.abort();
  else if (editing !== null) edit(null);
});
view.scroll.addEventListener("scroll", () => {
  const before = view.scroll.scrollTop;
  const left = view.scroll.scrollHeight - before - view.scroll.clientHeight;
  following = left < 80 || Math.abs(endOf() - before) < 80;
  view["to-end"].hidden = following;
});
view["to-end"].addEventListener("click", toEnd);

// ---- drawers, on narrow windows -----------------------------------------------------------------

const drawers = {
  open(name) {
    drawers.close();
    view[name].classList.add("is-open");
    byId(`show-${name}`).setAttribute("aria-expanded", "true");
    view.veil.hidden = false;
    byId(`close-${name}`).focus();
  },
  /** Returns whether one was open. */
  close() {
    const name = ["side", "mind"].find((each) => view[each].classList.contains("is-open"));
    if (!name) return false;
    view[name].classList.remove("is-open");
    byId(`show-${name}`).setAttribute("aria-expanded", "false");
    view.veil.hidden = true;
    byId(`show-${name}`).focus();
    return true;
  },
};
for (const name of ["side", "mind"]) {
  byId(`show-${name}`).addEventListener("click", () => drawers.open(name));
  byId(`close-${name}`).addEventListener("click", () => drawers.close());
}
view.veil.addEventListener("click", () => drawers.close());
view.tree.addEventListener("keydown", moveInTree);

// ---- files that are dropped ---------------------------------------------------------------------

let inside = 0;
const holdsFile = (event) => event.dataTransfer?.types.includes("Files");
addEventListener("dragenter", (event) => {
  if (!holdsFile(event)) return;
  inside++;
  view.drop.hidden = false;
});
addEventListener("dragleave", (event) => {
  if (holdsFile(event) && --inside <= 0) view.drop.hidden = true;
});
addEventListener("dragover", (event) => {
  if (holdsFile(event)) event.preventDefault();
});
addEventListener("drop", (event) => {
  inside = 0;
  view.drop.hidden = true;
  if (!holdsFile(event)) return;
  event.preventDefault();
  const [file] = event.dataTransfer.files;
  if (file) openMind(file);
});
byId("open-mind").addEventListener("click", () => byId("mind-file").click());
byId("mind-file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  if (file) openMind(file);
  event.target.value = "";
});
byId("save-mind").addEventListener("click", () => saveMind(tree.current));
byId("save-text").addEventListener("click", () => {
  const blob = new Blob([JSON.stringify(tree, null, 1)], { type: "application/json" });
  offer(blob, "conversation.json");
});
byId("new").addEventListener("click", () => open(newTree()));

// ---- settings -----------------------------------------------------------------------------------

const NUMBERS = ["temperature", "top_p", "seed", "max_tokens"];

function showSettings() {
  const settings = settingsOf();
  for (const name of NUMBERS) byId(name).value = settings[name] ?? "";
  byId("system").value = settings.system ?? "";
  byId("key").value = key.get();
  const theme = localStorage.getItem("rwkv-edge.theme") ?? "";
  document.querySelector(`[name=theme][value="${theme}"]`).checked = true;
  drawers.close();
  view.settings.showModal();
}

function takeSettings() {
  const settings = { system: byId("system").value.trim() || undefined };
  for (const name of NUMBERS) {
    const field = byId(name);
    if (field.value !== "" && field.validity.valid) settings[name] = field.valueAsNumber;
  }
  localStorage.setItem("rwkv-edge.settings", JSON.stringify(settings));
  const changed = byId("key").value !== key.get();
  key.set(byId("key").value);
  if (changed || !props) start();
}

function setTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  localStorage.setItem("rwkv-edge.theme", theme);
  drawDark();
}

const darkness = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (document.documentElement.dataset.theme ?? (darkness.matches ? "dark" : "light")) === "dark";

function drawDark() {
  view.dark.setAttribute("aria-pressed", String(isDark()));
  view.dark.replaceChildren(icon(isDark() ? "sun" : "moon"));
}

byId("settings-button").addEventListener("click", showSettings);
view.settings.addEventListener("close", takeSettings);
for (const each of document.querySelectorAll("[name=theme]")) {
  each.addEventListener("change", () => setTheme(each.value));
}
view.dark.addEventListener("click", () => setTheme(isDark() ? "light" : "dark"));
darkness.addEventListener("change", drawDark);

// ---- the beginning ------------------------------------------------------------------------------

/** Ask the server who it is. */
async function start() {
  try {
    props = await json("props");
    const { arch, n_layer: layers, n_embd: width } = props.model;
    view.model.textContent = props.model_alias;
    view.about.textContent = `${arch}, ${layers} × ${width}`;
    document.title = `${props.model_alias} · rwkv-edge`;
    byId("think-pick").hidden = !props.thinks;
    const { params } = props.default_generation_settings;
    byId("max_tokens").placeholder = params.max_tokens;
    byId("temperature").placeholder = params.temperature ?? "As served";
    byId("top_p").placeholder = params.top_p ?? "As served";
    await look();
    complain("");
  } catch (error) {
    complain(sentence(error));
    if (error.status === 401) {
      showSettings();
      byId("key").focus();
    }
  }
  draw();
}

async function begin() {
  for (const each of document.querySelectorAll("[data-icon]")) each.prepend(icon(each.dataset.icon));
  drawDark();
  trees = await store.load().catch(() => []);
  for (const each of trees) {
    // What was being written when the page was left.
    for (const node of Object.values(each.nodes).filter((found) => found.status === "writing")) {
      node.status = "stopped";
      if (!node.answer && each.nodes[node.id]) drop(each, node.id);
    }
  }
  const last = localStorage.getItem("rwkv-edge.open");
  tree = trees.find((each) => each.id === last) ?? newTree();
  draw();
  toEnd();
  await start();
  view.text.disabled = false; // not before the tree is known that a text belongs to
  if (!view.settings.open) focusText();
}

begin();
