// SPDX-License-Identifier: Apache-2.0

/**
 * A compute driver that answers in bytes of its own: frames that lie, messages that are none, HTTP/2 that no gRPC library
 * speaks. What it is not told to answer otherwise it answers with an empty message and OK.
 */
import { rmSync } from "node:fs";
import * as http2 from "node:http2";
import { status } from "@grpc/grpc-js";
import type { Method } from "./scripted-driver.ts";

/** Answers one call; the stream's request has been read to its end. */
export type Answering = (stream: http2.ServerHttp2Stream) => void;

const HEADERS = { ":status": 200, "content-type": "application/grpc" };

/** A message as gRPC frames it: a flag, its length in four bytes, itself. Both may lie. */
export function framed(message: Uint8Array, { flag = 0, length = message.length } = {}): Buffer {
  const prefix = Buffer.alloc(5);
  prefix[0] = flag;
  prefix.writeUInt32BE(length, 1);
  return Buffer.concat([prefix, message]);
}

/** Answers with these bytes, and ends the call with these trailers. */
export const replies =
  (body: Uint8Array, trailers: http2.OutgoingHttpHeaders = { "grpc-status": status.OK }): Answering =>
  (stream) => {
    stream.on("wantTrailers", () => stream.sendTrailers(trailers));
    stream.respond(HEADERS, { waitForTrailers: true });
    stream.end(body);
  };

/** Answers with these bytes, and leaves the call open. */
export const opens =
  (body: Uint8Array): Answering =>
  (stream) => {
    stream.respond(HEADERS);
    stream.write(body);
  };

/** Answers with headers alone, which end the call. */
export const headersOnly =
  (headers: http2.OutgoingHttpHeaders): Answering =>
  (stream) =>
    stream.respond({ ...HEADERS, ...headers }, { endStream: true });

/** The driver, on its socket. */
export class WireDriver {
  /** What was asked, in the order of arrival. */
  readonly calls: string[] = [];
  readonly #server = http2.createServer();
  readonly #sessions = new Set<http2.ServerHttp2Session>();
  readonly #answers: Partial<Record<Method, Answering>> = {};

  private constructor(readonly path: string) {
    this.#server.on("sessionError", () => {});
    this.#server.on("session", (session) => {
      this.#sessions.add(session);
      session.on("error", () => {});
      session.on("close", () => this.#sessions.delete(session));
    });
    this.#server.on("stream", (stream, headers) => {
      stream.on("error", () => {});
      stream.resume();
      stream.on("end", () => {
        const method = String(headers[":path"]).split("/").at(-1) as Method;
        this.calls.push(method);
        const usual = method === "WatchSandboxes" ? opens(Buffer.of()) : replies(framed(Buffer.of()));
        (this.#answers[method] ?? usual)(stream);
      });
    });
  }

  static async listen(path: string): Promise<WireDriver> {
    const driver = new WireDriver(path);
    await new Promise<void>((done, failed) => driver.#server.once("error", failed).listen(path, done));
    return driver;
  }

  /** From now on `method` is answered so. */
  on(method: Method, answer: Answering): void {
    this.#answers[method] = answer;
  }

  /** Breaks every connection, and listens no more. */
  close(): void {
    this.hangUp();
    this.#server.close();
    rmSync(this.path, { force: true });
  }

  /** Breaks every connection. */
  hangUp(): void {
    for (const session of this.#sessions) session.destroy();
  }
}
