// What every page needs of the server: requests, and frames fetched ahead of their turn.

const PATIENCE_MS = 20000;

const TOKEN = document.querySelector("meta[name=token]").content;

/** Answer of the server; throws an Error whose message a person can read. */
async function request(path, options = {}, patience = PATIENCE_MS) {
  let response;
  try {
    response = await fetch(path, { ...options, signal: AbortSignal.timeout(patience) });
  } catch {
    throw new Error("The server does not answer. Is `steatosis` still running?");
  }
  if (response.ok) return response;
  const { detail } = await response.json().catch(() => ({}));
  throw new Error(detail ?? `The server refused (${response.status}).`);
}

/** What a path holds, as JSON; `query` is put behind it. */
export const get = async (path, query = {}) => (await request(
  `${path}?${new URLSearchParams(query)}`, { headers: { "X-Token": TOKEN } },
)).json();

/** Ask for a change. */
export const post = async (path, wanted) => (await request(path, {
  method: "POST",
  headers: { "Content-Type": "application/json", "X-Token": TOKEN },
  body: JSON.stringify(wanted),
})).json();

/** Send files with `more` that is said of them: a line of JSON, then the bytes. Answers bytes. */
export async function sendFiles(path, files, more, patience) {
  const list = files.map((file) => [file.name, file.size]);
  const body = new Blob([`${JSON.stringify({ files: list, ...more })}\n`, ...files]);
  const headers = { "Content-Type": "application/octet-stream", "X-Token": TOKEN };
  const response = await request(path, { method: "POST", headers, body }, patience);
  return new Uint8Array(await response.arrayBuffer());
}

/** Bytes as `{head, blob(place)}`: a line of JSON, then the bytes it names. */
export function unpacked(bytes) {
  const end = bytes.indexOf(10);
  const head = JSON.parse(new TextDecoder().decode(bytes.subarray(0, end)));
  const starts = head.blobs.reduce((ends, size) => [...ends, ends.at(-1) + size], [end + 1]);
  return { head, blob: (place) => bytes.subarray(starts[place], starts[place + 1]) };
}

async function load(path, hasOutlines) {
  const response = await request(`${path}/picture.png`);
  const header = (name) => response.headers.get(`X-Frame-${name}`);
  const outlines = hasOutlines ? get(`${path}/outlines`) : Promise.resolve({});
  outlines.catch(() => {}); // a frame without outlines is still a frame
  return {
    bitmap: await createImageBitmap(await response.blob()),
    height: Number(header("Height")),
    width: Number(header("Width")),
    notice: decodeURIComponent(header("Notice")),
    outlines,
  };
}

/** Decoded frames by id, so that the next one is drawn without waiting. */
export class Frames {
  #frames = new Map();
  #root;
  #more;

  /** `root` is the path on the server below which a frame's id stands; `kept` are held decoded. */
  constructor(root, more = {}) {
    this.#root = root;
    this.#more = { kept: 10, outlines: true, ...more };
  }

  /** Promise of `{bitmap, height, width, notice, outlines}`; `outlines` is a promise, too. */
  get(frameId) {
    const path = `${this.#root}/${encodeURIComponent(frameId)}`;
    const kept = this.#frames.get(frameId) ?? load(path, this.#more.outlines);
    this.#frames.delete(frameId); // put it last, as the one used most recently
    this.#frames.set(frameId, kept);
    kept.catch(() => this.#frames.delete(frameId)); // a file that was repaired is asked for again
    for (const [id, frame] of this.#frames) {
      if (this.#frames.size <= this.#more.kept) break;
      this.#frames.delete(id);
      frame.then(({ bitmap }) => bitmap.close(), () => {});
    }
    return kept;
  }

  /** Fetch frames whose turn comes soon, one after the other, the nearest first. */
  async prefetch(frameIds) {
    for (const id of frameIds) await this.get(id).catch(() => {});
  }
}
