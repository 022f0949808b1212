// SPDX-License-Identifier: Apache-2.0

/** A container's output, in frames of stdout and stderr, each in its own order. */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { type Container, isUp } from "./container.ts";
import { fail, flag } from "./http.ts";

const HEADERS = { "content-type": "application/octet-stream" };
const FOLLOW_MS = 25;

/** GET /containers/*\/logs: what there is, or its last `tail` lines; with `follow` also what comes until it ends. */
export function logs(container: Container, query: URLSearchParams, signal: AbortSignal): Response {
  const outputs = [
    ...(flag(query, "stdout") ? [new Output(1, join(container.folder, "stdout.log"))] : []),
    ...(flag(query, "stderr") ? [new Output(2, join(container.folder, "stderr.log"))] : []),
  ];
  if (outputs.length === 0) fail(400, "must specify at least one of stdout or stderr");
  const tail = query.get("tail") ?? "";
  const written = frames(outputs, /^\d+$/.test(tail) ? Number(tail) : Infinity);
  if (!flag(query, "follow")) return new Response(written, { headers: HEADERS });
  const body = new ReadableStream<Uint8Array>({
    async start(controller) {
      controller.enqueue(written);
      while (isUp(container) && !signal.aborted) {
        await Bun.sleep(FOLLOW_MS);
        const more = frames(outputs);
        if (more.length > 0 && !signal.aborted) controller.enqueue(more);
      }
      if (!signal.aborted) controller.close();
    },
  });
  return new Response(body, { headers: HEADERS });
}

class Output {
  #read = 0;

  constructor(
    readonly number: number,
    readonly file: string,
  ) {}

  /** The lines since the last call, each with its end. */
  lines(): string[] {
    const all = existsSync(this.file) ? readFileSync(this.file) : Buffer.alloc(0);
    const fresh = all.subarray(this.#read).toString("latin1");
    this.#read = all.length;
    return fresh.split(/(?<=\n)/).filter(Boolean);
  }
}

function frames(outputs: Output[], most = Infinity): Buffer<ArrayBuffer> {
  const parts = outputs.flatMap((output) => {
    const lines = output.lines();
    return lines.slice(Math.max(0, lines.length - most)).flatMap((line) => {
      const header = Buffer.alloc(8);
      header.writeUInt8(output.number, 0);
      header.writeUInt32BE(line.length, 4);
      return [header, Buffer.from(line, "latin1")];
    });
  });
  return Buffer.concat(parts);
}
