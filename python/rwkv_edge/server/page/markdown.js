// SPDX-License-Identifier: Apache-2.0
// A reader of the Markdown that models write. It makes elements with text nodes in them and never
// HTML, so nothing that a model writes can become code. It knows headings, paragraphs, lists,
// quotes, fences, tables, rules, emphasis, code and links. Time is linear in the length of the text.

import { copyButton, h } from "./dom.js";

const DEEP = 12; // quotes and lists in each other; what is deeper stays text
const FENCE = /^ {0,3}(`{3,}|~{3,})(.*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+|$)(.*)$/;
const RULE = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])( +|$)(.*)$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
const COLUMNS = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?$/;

/** Writes a text into an element. Called again with a longer text, it keeps what stays the same:
 * selections and buttons outlive a stream. */
export function show(target, text) {
  const found = blocks(text.replace(/\r\n?/g, "\n").split("\n"));
  const before = target.shownBlocks ?? [];
  let same = 0;
  while (same < found.length && before[same] === found[same].source) same++;
  while (target.childNodes.length > same) target.lastChild.remove();
  for (const block of found.slice(same)) target.append(made(block, 0));
  target.shownBlocks = found.map((block) => block.source);
}

/** Cuts lines into blocks: {kind, lines, source, ...}. */
function blocks(lines) {
  const found = [];
  for (let i = 0; i < lines.length; ) {
    const start = i;
    const block = blockAt(lines, i);
    i = block.end;
    if (block.kind) found.push({ ...block, source: lines.slice(start, i).join("\n") });
  }
  return found;
}

function blockAt(lines, i) {
  const line = lines[i];
  if (!line.trim()) return { end: i + 1 };
  let match = fenceIn(line);
  if (match) return fence(lines, i, match);
  match = HEADING.exec(line);
  if (match) {
    const text = match[2].trim();
    const bare = withoutEnd(text, "#");
    const kept = bare === "" || /[ \t]$/.test(bare) ? bare.trim() : text;
    return { kind: "heading", level: match[1].length, text: kept, end: i + 1 };
  }
  if (RULE.test(line)) return { kind: "rule", end: i + 1 };
  if (QUOTE.test(line)) {
    const inner = [];
    for (; i < lines.length && (match = QUOTE.exec(lines[i])); i++) inner.push(match[1]);
    return { kind: "quote", lines: inner, end: i };
  }
  match = ITEM.exec(line);
  if (match && match[1].length < 4) return list(lines, i, match);
  if (line.includes("|") && i + 1 < lines.length && isColumns(lines[i + 1])) {
    const wanted = cells(lines[i + 1]);
    if (cells(line).length === wanted.length) return table(lines, i, wanted);
  }
  const start = i;
  for (i++; i < lines.length && !begins(lines, i); i++);
  return { kind: "text", text: lines.slice(start, i).join("\n"), end: i };
}

/** Without the letters at its end that are among `marks`. */
function withoutEnd(text, marks) {
  let end = text.length;
  while (end && marks.includes(text[end - 1])) end--;
  return text.slice(0, end);
}

const isColumns = (line) => line.includes("|") && COLUMNS.test(line.trimEnd());

/** [, mark, language] where a fence begins. */
function fenceIn(line) {
  const match = FENCE.exec(line);
  if (!match || (match[1][0] === "`" && match[2].includes("`"))) return null;
  return [null, match[1], match[2].trim().split(/\s/, 1)[0]];
}

/** Whether a line ends the paragraph before it. */
function begins(lines, i) {
  const line = lines[i];
  const item = ITEM.exec(line);
  return (
    !line.trim() ||
    fenceIn(line) !== null ||
    HEADING.test(line) ||
    RULE.test(line) ||
    QUOTE.test(line) ||
    (item && item[1].length < 4 && item[4] !== "") ||
    (line.includes("|") && i + 1 < lines.length && isColumns(lines[i + 1]))
  );
}

function fence(lines, i, match) {
  const [, mark, language] = match;
  const indent = /^ */.exec(lines[i])[0].length;
  const inner = [];
  for (i++; i < lines.length; i++) {
    const closing = /^ {0,3}(`+|~+)[ \t]*$/.exec(lines[i]);
    if (closing && closing[1][0] === mark[0] && closing[1].length >= mark.length) {
      return { kind: "code", language, text: inner.join("\n"), end: i + 1 };
    }
    const own = /^ */.exec(lines[i])[0].length;
    inner.push(lines[i].slice(Math.min(indent, own)));
  }
  return { kind: "code", language, text: inner.join("\n"), end: i }; // not closed yet
}

function list(lines, i, first) {
  const ordered = /\d/.test(first[2]);
  const same = (match) => match && /\d/.test(match[2]) === ordered;
  const outer = first[1].length;
  const items = [];
  let loose = false;
  while (i < lines.length) {
    const match = ITEM.exec(lines[i]);
    if (!same(match) || match[1].length < outer || match[1].length > outer + 3) break;
    const width = match[1].length + match[2].length + (match[3].length > 4 ? 1 : match[3].length || 1);
    const inner = [match[4]];
    for (i++; i < lines.length; i++) {
      const line = lines[i];
      const indent = line.trim() ? /^ */.exec(line)[0].length : Infinity;
      if (indent === Infinity) {
        // A blank line belongs to the item if what follows it does.
        let next = i + 1;
        while (next < lines.length && !lines[next].trim()) next++;
        if (next === lines.length || /^ */.exec(lines[next])[0].length < Math.min(width, outer + 2)) {
          break;
        }
        while (i + 1 < next) {
          inner.push("");
          i++;
        }
        inner.push("");
        loose = true;
      } else if (indent >= Math.min(width, outer + 2)) {
        inner.push(line.slice(Math.min(indent, width)));
      } else if (ITEM.test(line) || begins(lines, i)) {
        break;
      } else {
        inner.push(line.trimStart());
      }
    }
    items.push(inner);
    let next = i;
    while (next < lines.length && !lines[next].trim()) next++;
    if (next > i && next < lines.length) {
      const after = ITEM.exec(lines[next]);
      if (same(after) && after[1].length >= outer && after[1].length <= outer + 3) {
        loose = true;
        i = next;
      }
    }
  }
  return { kind: "list", ordered, start: ordered ? parseInt(first[2], 10) : 1, items, loose, end: i };
}

function cells(line) {
  const inner = line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function table(lines, i, columns) {
  const sides = columns.map((cell) =>
    cell.endsWith(":") ? (cell.startsWith(":") ? "middle" : "end") : "start",
  );
  const head = cells(lines[i]);
  const body = [];
  for (i += 2; i < lines.length && lines[i].includes("|") && lines[i].trim(); i++) {
    const row = cells(lines[i]).slice(0, head.length);
    while (row.length < head.length) row.push("");
    body.push(row);
  }
  return { kind: "table", head, body, sides, end: i };
}

function made(block, depth) {
  switch (block.kind) {
    case "heading":
      // The page's own headings are above those of an answer.
      return h(`h${Math.min(block.level + 2, 6)}`, { class: `h${block.level}` }, inline(block.text));
    case "rule":
      return h("hr");
    case "quote":
      if (depth >= DEEP) return h("p", null, block.lines.join("\n"));
      return h("blockquote", null, blocks(block.lines).map((each) => made(each, depth + 1)));
    case "code":
      return code(block);
    case "list":
      return listed(block, depth);
    case "table":
      return tabled(block);
    default:
      return h("p", null, inline(block.text));
  }
}

function code({ language, text }) {
  const name = language.slice(0, 30);
  return h(
    "figure",
    { class: "code" },
    h("figcaption", null, h("span", null, name || "text"), copyButton("Copy the code", () => text, { text: "Copy" })),
    h("pre", { tabindex: "0", aria: { label: `Code${name ? ` in ${name}` : ""}` } }, h("code", null, text)),
  );
}

function listed({ ordered, start, items, loose }, depth) {
  const rows = items.map((lines) => {
    if (depth >= DEEP) return h("li", null, lines.join("\n"));
    const parts = blocks(lines).map((each) =>
      each.kind === "text" && !loose ? h("span", null, inline(each.text)) : made(each, depth + 1),
    );
    return h("li", null, parts);
  });
  return ordered ? h("ol", { start: start === 1 ? null : start }, rows) : h("ul", null, rows);
}

function tabled({ head, body, sides }) {
  const row = (kind, texts) =>
    h("tr", null, texts.map((text, i) => h(kind, { class: `cell-${sides[i]}` }, inline(text))));
  return h(
    "div",
    { class: "table", tabindex: "0", role: "region", aria: { label: "Table" } },
    h("table", null, h("thead", null, row("th", head)), h("tbody", null, body.map((each) => row("td", each)))),
  );
}

// ---- inside a line ------------------------------------------------------------------------------

const PUNCTUATION = /[!-/:-@[-`{-~]/;
const ADDRESS = /https?:\/\/[^\s<>"`]+/y;

/** Nodes of a text with emphasis, code and links. */
function inline(text) {
  const nodes = []; // what is finished
  const open = []; // marks that may begin something: {mark, at}, their places in `nodes`
  const closings = runsOf(text);
  let plain = "";
  const flush = () => {
    if (plain) nodes.push(document.createTextNode(plain));
    plain = "";
  };
  for (let i = 0; i < text.length; ) {
    const at = text[i];
    if (at === "\\" && i + 1 < text.length) {
      if (text[i + 1] === "\n") plain += "\n";
      else plain += PUNCTUATION.test(text[i + 1]) ? text[i + 1] : `\\${text[i + 1]}`;
      i += 2;
    } else if (at === "`") {
      const length = run(text, i, "`");
      const end = closings.next(length, i + length);
      if (end < 0) plain += text.slice(i, i + length);
      else {
        flush();
        const inner = text.slice(i + length, end).replaceAll("\n", " ");
        const padded = inner.startsWith(" ") && inner.endsWith(" ") && inner.trim();
        nodes.push(h("code", null, padded ? inner.slice(1, -1) : inner));
      }
      i = end < 0 ? i + length : end + length;
    } else if (at === "\n") {
      plain = plain.trimEnd();
      flush();
      nodes.push(h("br"));
      i++;
      while (text[i] === " ") i++;
    } else if (at === "*" || at === "_" || at === "~") {
      i = emphasis(text, i, nodes, open, flush, (more) => (plain += more));
    } else if (at === "[" || (at === "!" && text[i + 1] === "[")) {
      const link = linkAt(text, at === "!" ? i + 1 : i);
      if (link) {
        flush();
        nodes.push(anchor(link.url, link.label));
        i = link.end;
      } else {
        plain += at;
        i++;
      }
    } else if (at === "h" && (i === 0 || !/[\w]/.test(text[i - 1]))) {
      const url = address(text, i);
      if (url) {
        flush();
        nodes.push(anchor(url, url));
        i += url.length;
      } else {
        plain += at;
        i++;
      }
    } else {
      plain += at;
      i++;
    }
  }
  flush();
  return nodes;
}

function run(text, i, mark) {
  let end = i;
  while (text[end] === mark) end++;
  return end - i;
}

/** Where runs of backticks are, by their length: each is looked at once. */
function runsOf(text) {
  const places = new Map();
  for (let i = text.indexOf("`"); i >= 0; i = text.indexOf("`", i)) {
    const length = run(text, i, "`");
    if (!places.has(length)) places.set(length, { at: [], seen: 0 });
    places.get(length).at.push(i);
    i += length;
  }
  return {
    next(length, from) {
      const found = places.get(length);
      if (!found) return -1;
      while (found.seen < found.at.length && found.at[found.seen] < from) found.seen++;
      return found.at[found.seen] ?? -1;
    },
  };
}

/** A run of *, _ or ~: it ends what such a run began, or may begin something, or is text. */
function emphasis(text, i, nodes, open, flush, say) {
  const mark = text[i];
  const length = run(text, i, mark);
  const before = i ? text[i - 1] : " ";
  const after = text[i + length] ?? " ";
  const word = (letter) => /[\p{L}\p{N}]/u.test(letter);
  const inWord = mark === "_" && word(before) && word(after);
  const canClose = !/\s/.test(before) && !inWord;
  const canOpen = !/\s/.test(after) && !inWord;
  const known = mark === "~" ? length === 2 : length <= 3;
  const end = i + length;
  if (known && canClose) {
    const back = open.findLastIndex((each) => each.mark === mark && each.length === length);
    if (back >= 0) {
      flush();
      const { at } = open[back];
      open.length = back;
      const inner = nodes.splice(at + 1);
      nodes.pop(); // the mark itself
      if (mark === "~") nodes.push(h("del", null, ...inner));
      else if (length === 1) nodes.push(h("em", null, ...inner));
      else if (length === 2) nodes.push(h("strong", null, ...inner));
      else nodes.push(h("strong", null, h("em", null, ...inner)));
      return end;
    }
  }
  if (known && canOpen && open.length < 100) {
    flush();
    open.push({ mark, length, at: nodes.length });
    nodes.push(document.createTextNode(text.slice(i, end)));
  } else {
    say(text.slice(i, end));
  }
  return end;
}

const MOST_LINK = 4096; // characters, so that a text of brackets takes no time

/** [label](url "title") at a place; null for anything else. */
function linkAt(text, i) {
  const near = text.slice(i, i + MOST_LINK);
  const close = i + near.indexOf("]");
  if (close <= i || text[close + 1] !== "(") return null;
  const end = close + text.slice(close, close + MOST_LINK).indexOf(")");
  if (end <= close) return null;
  let [url] = text.slice(close + 2, end).trim().split(/\s/, 1);
  let last = end;
  // An address may hold a pair of brackets.
  if (url.includes("(") && text[end + 1] === ")") {
    url += ")";
    last++;
  }
  url = url.replace(/^<(.*)>$/, "$1");
  return { label: text.slice(i + 1, close) || url, url, end: last + 1 };
}

function address(text, i) {
  ADDRESS.lastIndex = i;
  const match = ADDRESS.exec(text);
  if (!match) return null;
  let url = withoutEnd(match[0], ".,:;!?'*_~");
  if (url.endsWith(")") && !url.includes("(")) url = url.slice(0, -1);
  return url.length > 8 ? url : null;
}

/** A link to http or https; anything else stays text. */
function anchor(url, label) {
  let found = null;
  try {
    found = new URL(url);
  } catch {
    // a path of nowhere
  }
  if (!found || !["http:", "https:"].includes(found.protocol)) {
    return document.createTextNode(label === url ? label : `${label} (${url})`);
  }
  return h(
    "a",
    { href: found.href, target: "_blank", rel: "noopener noreferrer nofollow", title: found.href },
    label,
  );
}
