// SPDX-License-Identifier: Apache-2.0

/**
 * A remedy for a defect of Bun's HTTP/2 client (1.4.5, oven-sh/bun#41329): when the server raises
 * SETTINGS_INITIAL_WINDOW_SIZE, streams that are open keep their old window, so the two sides disagree and a larger
 * upload hangs for ever. A tonic server with adaptive windows, such as the real gateway, does that after some 100 KB.
 *
 * A connection made with these credentials passes through a filter that tells Bun of a raise in the form that it
 * understands: it hides the new value and gives each stream, open or opened later, the difference as WINDOW_UPDATE
 * (RFC 9113, 6.9.2). Once Bun has the fix, `raisedWindows(credentials)` can become `credentials`.
 */
import { Duplex } from "node:stream";
import type { Socket } from "node:net";
import type * as grpc from "@grpc/grpc-js";

/** The only place where grpc-js lets a connection be replaced. */
const CONNECTOR = "_createSecureConnector";
type Connector = ReturnType<grpc.ChannelCredentials[typeof CONNECTOR]>;

/** The same credentials, for clients that send more than a few kilobytes in a stream. */
export function raisedWindows(inner: grpc.ChannelCredentials): grpc.ChannelCredentials {
  const wrapped: grpc.ChannelCredentials = Object.create(inner);
  wrapped[CONNECTOR] = (...args): Connector => {
    const connector = inner[CONNECTOR](...args);
    return {
      connect: async (socket) => {
        const result = await connector.connect(socket);
        return { ...result, socket: new WindowFilter(result.socket) as unknown as Socket };
      },
      waitForReady: () => connector.waitForReady(),
      getCallCredentials: () => connector.getCallCredentials(),
      destroy: () => connector.destroy(),
    };
  };
  return wrapped;
}

const PREFACE_BYTES = 24;
const HEADER_BYTES = 9;
const [DATA, HEADERS, RST_STREAM, SETTINGS, WINDOW_UPDATE] = [0, 1, 3, 4, 8];
const ACK_OR_END_STREAM = 1;
const INITIAL_WINDOW_SIZE = 4;

/** A connection as the HTTP/2 client sees it. Bytes pass unchanged but for the windows. */
class WindowFilter extends Duplex {
  readonly #socket: Socket;
  /** The initial window that the client was told, and how much more the server means. */
  #told = 65_535;
  #more = 0;
  #settled = false;
  readonly #open = new Set<number>();
  /** What is done once the client has dealt with the server's first settings. */
  #held: (() => void)[] | undefined;
  /** Of what the server sent, the frame that is not complete yet. */
  #partial: Buffer = Buffer.alloc(0);
  /** Of what the client sends: bytes until the next frame, and the frame header so far. */
  #skip = PREFACE_BYTES;
  #header = Buffer.alloc(HEADER_BYTES);
  #headerBytes = 0;

  constructor(socket: Socket) {
    super();
    this.#socket = socket;
    socket.on("data", (data: Buffer) => this.#inOrder(() => this.#receive(data)));
    socket.on("end", () => this.#inOrder(() => this.push(null)));
    socket.on("error", (error) => this.destroy(error));
    socket.on("close", () => this.destroy());
  }

  override _read(): void {
    this.#socket.resume();
  }

  override _write(data: Buffer, _encoding: BufferEncoding, done: (error?: Error | null) => void): void {
    this.#fromClient(data);
    this.#socket.write(data, done);
  }

  override _final(done: (error?: Error | null) => void): void {
    this.#socket.end(() => done());
  }

  override _destroy(error: Error | null, done: (error?: Error | null) => void): void {
    this.#socket.destroy();
    done(error);
  }

  /** Does it once what came before has been passed on. */
  #inOrder(next: () => void): void {
    if (this.#held) this.#held.push(next);
    else next();
  }

  #receive(data: Buffer): void {
    if (!this.#fromServer(data)) this.#socket.pause();
  }

  /**
   * Holds back what follows the server's first settings until the client has dealt with those: grpc-js listens for a
   * GOAWAY only some microtasks later, and takes a connection for usable for ever when it misses one.
   */
  #holdBack(rest: Buffer): void {
    this.#held = [() => this.#receive(rest)];
    setImmediate(() => {
      const held = this.#held!;
      this.#held = undefined;
      for (const next of held) next();
    });
  }

  /** Passes the complete frames on. @returns whether the client wants more. */
  #fromServer(data: Buffer): boolean {
    const bytes = this.#partial.length > 0 ? Buffer.concat([this.#partial, data]) : data;
    const updates: Buffer[] = [];
    let at = 0;
    while (bytes.length - at >= HEADER_BYTES) {
      const { length, type, flags, stream } = readHeader(bytes.subarray(at));
      const end = at + HEADER_BYTES + length;
      if (end > bytes.length) break;
      const ended = (type === DATA || type === HEADERS) && (flags & ACK_OR_END_STREAM) !== 0;
      if (ended || type === RST_STREAM) this.#open.delete(stream);
      const isSettings = type === SETTINGS && (flags & ACK_OR_END_STREAM) === 0;
      const isFirst = isSettings && !this.#settled;
      if (isSettings) {
        updates.push(...this.#settings(bytes.subarray(at + HEADER_BYTES, end)));
      }
      at = end;
      if (isFirst) {
        this.#partial = Buffer.alloc(0);
        this.push(bytes.subarray(0, at));
        this.#holdBack(bytes.subarray(at));
        return true;
      }
    }
    this.#partial = bytes.subarray(at);
    return this.push(Buffer.concat([bytes.subarray(0, at), ...updates])) || at === 0;
  }

  /** Takes a raise out of the settings. @returns the frames that stand for it. */
  #settings(settings: Buffer): Buffer[] {
    const updates: Buffer[] = [];
    for (let at = 0; at + 6 <= settings.length; at += 6) {
      if (settings.readUInt16BE(at) !== INITIAL_WINDOW_SIZE) continue;
      const value = settings.readUInt32BE(at + 2);
      const raise = value - this.#told - this.#more;
      // The first settings come before any stream, and Bun does lower windows.
      if (!this.#settled || raise <= 0) {
        this.#told = value;
        this.#more = 0;
        continue;
      }
      this.#more += raise;
      settings.writeUInt32BE(this.#told, at + 2);
      for (const stream of this.#open) updates.push(windowUpdate(stream, raise));
    }
    this.#settled = true;
    return updates;
  }

  /** Notes the streams that the client opens, and gives each what the server means above what the client was told. */
  #fromClient(data: Buffer): void {
    for (let at = 0; at < data.length;) {
      const skipped = Math.min(this.#skip, data.length - at);
      this.#skip -= skipped;
      at += skipped;
      const copied = data.copy(this.#header, this.#headerBytes, at, at + HEADER_BYTES - this.#headerBytes);
      this.#headerBytes += copied;
      at += copied;
      if (this.#headerBytes < HEADER_BYTES) return;
      const { length, type, stream } = readHeader(this.#header);
      this.#headerBytes = 0;
      this.#skip = length;
      if (type === RST_STREAM) this.#open.delete(stream);
      if (type !== HEADERS || this.#open.has(stream)) continue;
      this.#open.add(stream);
      // Not before the client is done with this write: it would be called from within itself.
      const more = this.#more;
      if (more > 0) queueMicrotask(() => this.push(windowUpdate(stream, more)));
    }
  }
}

const readHeader = (frame: Buffer) => ({
  length: frame.readUIntBE(0, 3),
  type: frame[3]!,
  flags: frame[4]!,
  stream: frame.readUInt32BE(5) & 0x7fff_ffff,
});

function windowUpdate(stream: number, increment: number): Buffer {
  const frame = Buffer.alloc(HEADER_BYTES + 4);
  frame.writeUIntBE(4, 0, 3);
  frame[3] = WINDOW_UPDATE!;
  frame.writeUInt32BE(stream, 5);
  frame.writeUInt32BE(increment, HEADER_BYTES);
  return frame;
}
