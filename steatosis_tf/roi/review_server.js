// Everything that crosses to the server: requests, and frames fetched ahead of their turn.

const PATIENCE_MS = 20000;
const KEPT_FRAMES = 10;

/** Answer of the server; throws an Error whose message a reviewer can read. */
async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, signal: AbortSignal.timeout(PATIENCE_MS) });
  } catch {
    throw new Error("The server does not answer. Is `steatosis review` still running?");
  }
  if (response.ok) return response;
  const detail = (await response.json().catch(() => ({}))).detail;
  throw new Error(typeof detail === "string" ? detail : `The server refused (${response.status}).`);
}

export const session = async () => (await request("/review/session")).json();

/** Row at a place, its neighbours and the progress. */
export const go = async (place) => (await request(`/review/go?${new URLSearchParams(place)}`)).json();

/** `{saved, row, ...}`; resolves when the decision is on disk. */
export const decide = async (decision) => (await request("/review/decisions", {
  method: "POST",
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify(decision),
})).json();

async function load(frameId) {
  const path = `/review/frames/${encodeURIComponent(frameId)}`;
  const response = await request(`${path}/picture.png`);
  const header = (name) => response.headers.get(`X-Frame-${name}`);
  const outlines = request(`${path}/outlines`).then((answer) => answer.json());
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

  /** Promise of `{bitmap, height, width, notice, outlines}`; `outlines` is a promise, too. */
  get(frameId) {
    const kept = this.#frames.get(frameId) ?? load(frameId);
    this.#frames.delete(frameId); // put it last, as the one used most recently
    this.#frames.set(frameId, kept);
    kept.catch(() => this.#frames.delete(frameId)); // a file that was repaired is asked for again
    for (const [id, frame] of this.#frames) {
      if (this.#frames.size <= KEPT_FRAMES) break;
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
