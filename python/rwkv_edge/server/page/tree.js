// SPDX-License-Identifier: Apache-2.0
// A conversation as a tree. A node is a turn: what was said, what was answered, and the state of the
// model behind it. States never change, so every node can be gone on from at any time.

/** Random, also where `crypto.randomUUID` is missing: on plain HTTP beyond this machine. */
export function newId() {
  const octets = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(octets, (octet) => octet.toString(16).padStart(2, "0")).join("");
}

export function newTree(mind = null) {
  const now = Date.now();
  return {
    id: newId(),
    created: now,
    updated: now,
    // What all of it begins with: a system text, whose state is kept, or the mind of a file.
    root: { system: "", state: null, mind },
    nodes: {},
    current: null, // the node that is gone on from; null: the root
    chosen: {}, // of each node, the child that was looked at last
    spread: {}, // nodes whose children are shown side by side
  };
}

export function add(tree, parent, said) {
  const node = {
    id: newId(),
    parent,
    said,
    answer: "",
    thought: "",
    state: null,
    tokens: null, // that the state has read
    bytes: null,
    status: "writing", // done, length, stopped, broken
    note: "",
    stats: null,
    created: Date.now(),
  };
  tree.nodes[node.id] = node;
  return node;
}

export const children = (tree, id) =>
  Object.values(tree.nodes).filter((node) => node.parent === id);

/** From the first turn to a node. */
export function path(tree, id) {
  const found = [];
  for (let at = id; at !== null; at = tree.nodes[at].parent) found.unshift(tree.nodes[at]);
  return found;
}

/** Make a node the current one; the way there is what was looked at last. */
export function choose(tree, id) {
  tree.current = id;
  for (const node of path(tree, id)) tree.chosen[node.parent ?? "root"] = node.id;
}

/** Where one comes to from a node by the way that was looked at last. */
export function furthest(tree, id) {
  for (;;) {
    const below = children(tree, id);
    if (!below.length) return id;
    const last = tree.chosen[id ?? "root"];
    id = (below.find((node) => node.id === last) ?? below.at(-1)).id;
  }
}

/** A node and all below it. */
export function below(tree, id) {
  const found = [tree.nodes[id]];
  for (let i = 0; i < found.length; i++) found.push(...children(tree, found[i].id));
  return found;
}

export function drop(tree, id) {
  const gone = below(tree, id);
  const parent = tree.nodes[id].parent;
  for (const node of gone) {
    delete tree.nodes[node.id];
    delete tree.chosen[node.id];
    delete tree.spread[node.id];
  }
  if (gone.some((node) => node.id === tree.current)) choose(tree, parent);
  return gone;
}

/** The rows of a drawing, the root first. Branches stand to the right, right below where they
 * begin; the child where something was said last goes on straight down. So in every lane left of a node a line passes. */
export function rows(tree) {
  const way = new Set(path(tree, tree.current).map((node) => node.id));
  const byParent = groups(tree);
  const found = [];
  // Not recursive: a conversation may be deeper than the stack.
  const waiting = [{ id: null, lane: 0, level: 1, straight: true, passing: [] }];
  while (waiting.length) {
    const row = waiting.pop();
    const own = byParent.get(row.id) ?? [];
    const goesOn = own.some((node) => way.has(node.id));
    found.push({ ...row, below: own.length, lit: row.id === null || way.has(row.id), goesOn });
    // The last one goes straight down, so it is pushed first.
    for (let i = own.length - 1; i >= 0; i--) {
      const straight = i === own.length - 1;
      const later = own.slice(i + 1).some((node) => way.has(node.id));
      waiting.push({
        id: own[i].id,
        lane: row.lane + (straight ? 0 : 1),
        level: row.level + 1,
        straight,
        passing: straight ? row.passing : [...row.passing, later],
      });
    }
  }
  return found;
}

/** Children by their parents; last, the one with the newest node in it or below it. */
function groups(tree) {
  const found = new Map();
  const newest = new Map(); // of a node, the number of the newest one below
  const all = Object.values(tree.nodes); // a parent stands before its children
  for (let i = all.length - 1; i >= 0; i--) {
    const { id, parent } = all[i];
    if (!newest.has(id)) newest.set(id, i);
    newest.set(parent, Math.max(newest.get(parent) ?? 0, newest.get(id)));
    if (!found.has(parent)) found.set(parent, []);
    found.get(parent).unshift(all[i]);
  }
  for (const [parent, own] of found) {
    const last = own.find((node) => newest.get(node.id) === newest.get(parent));
    own.splice(own.indexOf(last), 1);
    own.push(last);
  }
  return found;
}

export const title = (tree) => {
  const first = Object.values(tree.nodes)[0];
  return first ? first.said : tree.root.mind ? tree.root.mind.name : "";
};

/** Every state that belongs to it. */
export const states = (tree) =>
  [tree.root.state, tree.root.mind?.state, ...Object.values(tree.nodes).map((node) => node.state)]
    .filter((state) => state);
