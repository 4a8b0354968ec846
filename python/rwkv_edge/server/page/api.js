// SPDX-License-Identifier: Apache-2.0
// The server: requests, streams, and what it means when it refuses.

const KEY = "rwkv-edge.key";

/** Only for this tab: it goes with it. */
export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

export class Refusal extends Error {
  constructor(message, { status = 0, code = null, wait = null } = {}) {
    super(message);
    Object.assign(this, { status, code, wait });
  }
}

/** A sentence for people. */
export function sentence(error) {
  if (!(error instanceof Refusal)) return `The page failed: ${error.message}.`;
  const said = error.message.replace(/\.$/, "");
  switch (error.status) {
    case 0:
      return error.code === "cut"
        ? "The connection broke before the answer ended."
        : "The server cannot be reached. Is rwkv-edge serve still running?";
    case 401:
      return key.get()
        ? "The server does not know this key. Look at it in the settings."
        : "This server wants a key. Enter it in the settings.";
    case 403:
      return `The server does not let this page in: ${said}.`;
    case 404:
      return error.code === "state_not_found"
        ? "The server no longer has this mind. If you saved it as a file, drop the file here."
        : `The server does not know this: ${said}.`;
    case 413:
      return `This is too long: ${said}.`;
    case 429:
      return `The server is busy: its queue is full. Try again in ${error.wait ?? "a few"} seconds.`;
    case 503:
      return "The server is stopping, or not ready yet. Try again in a moment.";
    default:
      return error.status >= 500
        ? `The server failed: ${said}.`
        : `The server did not take this: ${said}.`;
  }
}

async function refusalOf(response) {
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // a proxy's page, or nothing
  }
  return new Refusal(error.message ?? `HTTP ${response.status}`, {
    status: response.status,
    code: error.code ?? null,
    wait: response.headers.get("retry-after"),
  });
}

/** A response that is right. Raises Refusal for any other. */
export async function call(path, { method, body, file, signal } = {}) {
  const headers = {};
  if (key.get()) headers.authorization = `Bearer ${key.get()}`;
  if (file) headers["content-type"] = "application/octet-stream";
  else if (body) headers["content-type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method: method ?? (body || file ? "POST" : "GET"),
      headers,
      body: file ?? (body && JSON.stringify(body)),
      signal,
      cache: "no-store",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("no connection");
  }
  if (!response.ok) throw await refusalOf(response);
  return response;
}

export const json = async (path, options) => (await call(path, options)).json();

/** The chunks of an answer as they come. Raises Refusal for one that breaks off. */
export async function* chunks(path, options) {
  const response = await call(path, options);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      text += value;
      let end;
      while ((end = text.indexOf("\n\n")) >= 0) {
        const event = text.slice(0, end);
        text = text.slice(end + 2);
        if (!event.startsWith("data: ")) continue; // a sign of life
        if (event === "data: [DONE]") return;
        const chunk = JSON.parse(event.slice(6));
        if (chunk.error) {
          throw new Refusal(chunk.error.message, { status: 500, code: chunk.error.code });
        }
        yield chunk;
      }
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof Refusal) throw error;
    throw new Refusal("cut", { code: "cut" });
  } finally {
    reader.cancel().catch(() => {});
  }
  throw new Refusal("cut", { code: "cut" });
}
