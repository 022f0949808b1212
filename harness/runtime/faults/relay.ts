// SPDX-License-Identifier: Apache-2.0

/**
 * gRPC calls as the tap passes them on: messages as bytes, headers and trailers as they are. The keeper asks a driver
 * whether it answers in the same way.
 *
 * It is plain HTTP/2 (RFC 9113, and gRPC's PROTOCOL-HTTP2.md on top). A server and a client of grpc-js between gateway
 * and driver cost every call half a millisecond, and pass on neither `:authority` nor what they do not know.
 */
import * as http2 from "node:http2";
import { connect } from "node:net";
import { within } from "../../base/waiting.ts";
import { codeName } from "../../../proto/contract.ts";
import { status } from "../../../proto/grpc.ts";

/** How a call ended; the trailers say it in HTTP/2's words, with whatever else came along. */
export interface Ended {
  code: status;
  details: string;
  trailers: http2.OutgoingHttpHeaders;
}

/** The end of a call that is decided here. The message is percent-encoded on the wire. */
export const ended = (code: status, details = ""): Ended => ({
  code,
  details,
  trailers: { "grpc-status": code, ...(details && { "grpc-message": encodeURI(details) }) },
});

const TRAILERS_ONLY = { ":status": 200, "content-type": "application/grpc+proto" };
const REQUEST = {
  ":method": "POST",
  ":authority": "localhost",
  "content-type": "application/grpc",
  te: "trailers",
};
/** A flag and a length come before each message. */
const PREFIX_BYTES = 5;
/** The longest request that is passed on, in bytes; a longer one is refused before it is read. */
const LONGEST_REQUEST = 64 * 2 ** 20;
/** The longest response, in bytes: tonic, with which a gateway dials, refuses any other when it has read the length. */
const LONGEST_RESPONSE = 4 * 2 ** 20;
/** What a peer may send before it is read: a reader who is slow on purpose must be noticed by the sender, not here. */
const SETTINGS = { initialWindowSize: 65_535 };

/** A call that somebody made of this server. */
export class ServedCall {
  /** Messages that were written and that the caller has not made room for. */
  unread = 0;
  #over = false;
  #trailers: http2.OutgoingHttpHeaders = {};
  readonly #onCancelled: (() => void)[] = [];

  constructor(
    readonly stream: http2.ServerHttp2Stream,
    readonly headers: http2.IncomingHttpHeaders,
    /** Its only message. */
    readonly request: Buffer,
  ) {
    stream.once("close", () => {
      if (this.#over) return;
      this.#over = true;
      for (const told of this.#onCancelled) told();
    });
  }

  get authority(): string {
    return this.headers[":authority"] ?? "";
  }

  /** Calls `told` when the caller gives up, or its connection breaks, before the call has ended. */
  onCancelled(told: () => void): void {
    this.#onCancelled.push(told);
  }

  /** Nobody can be answered any more. A stream is gone before it says so, and throws what is said to it meanwhile. */
  get #isGone(): boolean {
    return this.#over || this.stream.destroyed || this.stream.closed;
  }

  /** Sends the response's headers, if they are not sent. */
  respond(headers: http2.OutgoingHttpHeaders = TRAILERS_ONLY): void {
    if (this.#isGone || this.stream.headersSent) return;
    this.stream.once("wantTrailers", () => this.stream.sendTrailers(this.#trailers));
    this.stream.respond(headers, { waitForTrailers: true });
  }

  /** Sends a message. @returns whether the caller keeps up; if not, `onDrain` tells when it has. */
  write(message: Buffer): boolean {
    if (this.#isGone) return true;
    this.respond();
    this.unread++;
    return this.stream.write(framed(message), () => this.unread--);
  }

  onDrain(told: () => void): void {
    this.stream.on("drain", told);
  }

  end({ trailers }: Ended): void {
    if (this.#isGone) return;
    this.#over = true;
    if (!this.stream.headersSent)
      return this.stream.respond({ ...TRAILERS_ONLY, ...trailers }, { endStream: true });
    this.#trailers = trailers;
    this.stream.end();
  }
}

/** A server on a Unix socket that hands out calls once all of their request has come. */
export class CallServer {
  readonly #sessions = new Set<http2.Http2Session>();
  readonly #server = http2.createServer({ settings: SETTINGS });

  private constructor(serve: (call: ServedCall, path: string) => void) {
    this.#server.on("session", (session) => {
      this.#sessions.add(session);
      session.on("error", () => {});
      session.on("close", () => this.#sessions.delete(session));
    });
    this.#server.on("sessionError", () => {});
    this.#server.on("stream", (stream, headers) => {
      stream.on("error", () => {});
      const messages = new Messages(LONGEST_REQUEST);
      const requests: Buffer[] = [];
      stream.on("data", (chunk: Buffer) => requests.push(...messages.add(chunk)));
      stream.on("end", () => {
        const call = new ServedCall(stream, headers, requests[0] ?? Buffer.of());
        const { refusal } = messages;
        if (refusal) call.end(refusal);
        else serve(call, headers[":path"] ?? "");
      });
    });
  }

  static async listen(socket: string, serve: (call: ServedCall, path: string) => void): Promise<CallServer> {
    const server = new CallServer(serve);
    await new Promise<void>((resolve, reject) =>
      server.#server.once("error", reject).listen(socket, () => resolve()),
    );
    return server;
  }

  /** Breaks every connection, and takes no more. */
  close(): void {
    for (const session of this.#sessions) session.destroy();
    this.#server.close();
  }
}

/** What is done with a call's response. `end` comes last, and once. */
export interface Receiver {
  headers?(headers: http2.IncomingHttpHeaders): void;
  message(message: Buffer): void;
  end(ended: Ended): void;
}

/** A call that was made of another server. */
export interface MadeCall {
  cancel(): void;
  pause(): void;
  resume(): void;
}

/** The other server, on its Unix socket. It is dialled when there is something to ask, and again after each end. */
export class Upstream {
  #session: http2.ClientHttp2Session | undefined;
  /** How dialling went for that session: Bun's own `connecting` is false from the start. */
  #dialled: Promise<void> = Promise.resolve();

  constructor(readonly socket: string) {}

  /** Makes a call with the headers of another one. */
  call(headers: http2.IncomingHttpHeaders, message: Buffer, receiver: Receiver): MadeCall {
    const session = this.#connected();
    let failure: Error | undefined;
    let stream: http2.ClientHttp2Stream;
    try {
      stream = session.request(uncompressed(headers));
    } catch (error) {
      // A session that ends in this very moment.
      queueMicrotask(() => receiver.end(ended(status.UNAVAILABLE, (error as Error).message)));
      return { cancel() {}, pause() {}, resume() {} };
    }
    const messages = new Messages(LONGEST_RESPONSE);
    let responded: http2.IncomingHttpHeaders = {};
    let trailers: http2.IncomingHttpHeaders | undefined;
    stream.on("response", (received) => {
      responded = received;
      messages.encoding = String(received["grpc-encoding"] ?? "identity");
      if ("grpc-status" in received) trailers = received;
      else receiver.headers?.(uncompressed(received));
    });
    stream.on("trailers", (received) => (trailers = received));
    stream.on("data", (chunk: Buffer) => {
      for (const complete of messages.add(chunk)) receiver.message(complete);
      if (messages.refusal) stream.close(http2.constants.NGHTTP2_CANCEL);
    });
    stream.on("error", (error) => (failure = error));
    stream.on("close", () =>
      receiver.end(messages.refusal ?? outcome(stream, session.destroyed, responded, trailers, failure)),
    );
    stream.end(framed(message));
    return {
      cancel: () => stream.close(http2.constants.NGHTTP2_CANCEL),
      pause: () => stream.pause(),
      resume: () => stream.resume(),
    };
  }

  /**
   * Makes a call with an empty request. To load grpc-js for that one would take longer than a driver's start.
   * @throws Error that says how it ended, unless with OK within `deadlineMs`.
   */
  async ask(path: string, deadlineMs: number): Promise<void> {
    const { promise: end, resolve } = Promise.withResolvers<Ended>();
    const call = this.call({ ...REQUEST, ":path": path }, Buffer.of(), { message() {}, end: resolve });
    const { code, details } = await within(deadlineMs, path, end).finally(() => call.cancel());
    if (code !== status.OK) throw new Error(`${codeName(code)}: ${details}`);
  }

  /** Resolves once there is a connection. @throws why there is none */
  async reached(): Promise<void> {
    this.#connected();
    await this.#dialled;
  }

  close(): void {
    this.#session?.destroy();
  }

  #connected(): http2.ClientHttp2Session {
    if (this.#session && !this.#session.closed && !this.#session.destroyed) return this.#session;
    const session = http2.connect("http://localhost", {
      createConnection: () => connect(this.socket),
      settings: SETTINGS,
    });
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const forget = (error?: Error) => {
      if (this.#session === session) this.#session = undefined;
      reject(error ?? new Error(`${this.socket}: the connection was closed`));
    };
    session.on("connect", () => resolve());
    session.on("error", forget);
    session.on("goaway", () => forget());
    session.on("close", () => forget());
    promise.catch(() => {});
    this.#dialled = promise;
    return (this.#session = session);
  }
}

const BY_HTTP_STATUS: Record<number, status> = {
  400: status.INTERNAL,
  401: status.UNAUTHENTICATED,
  403: status.PERMISSION_DENIED,
  404: status.UNIMPLEMENTED,
  429: status.UNAVAILABLE,
  502: status.UNAVAILABLE,
  503: status.UNAVAILABLE,
  504: status.UNAVAILABLE,
};

const BY_RESET: Record<number, status> = {
  [http2.constants.NGHTTP2_REFUSED_STREAM]: status.UNAVAILABLE,
  [http2.constants.NGHTTP2_CANCEL]: status.CANCELLED,
  [http2.constants.NGHTTP2_ENHANCE_YOUR_CALM]: status.RESOURCE_EXHAUSTED,
  [http2.constants.NGHTTP2_INADEQUATE_SECURITY]: status.PERMISSION_DENIED,
};

/** What of an answer's last headers is for this connection only. */
const HOP_BY_HOP = new Set([":status", "content-type", "grpc-encoding", "grpc-accept-encoding"]);

/** How a call ended, also one that did not say so: the rules are gRPC's (PROTOCOL-HTTP2.md, statuscodes.md). */
function outcome(
  stream: http2.ClientHttp2Stream,
  isDropped: boolean,
  headers: http2.IncomingHttpHeaders,
  trailers: http2.IncomingHttpHeaders | undefined,
  failure: Error | undefined,
): Ended {
  if (trailers?.["grpc-status"] !== undefined) {
    const passed = Object.entries(trailers).filter(([name]) => !HOP_BY_HOP.has(name));
    return {
      code: Number(trailers["grpc-status"]),
      details: percentDecoded(String(trailers["grpc-message"] ?? "")),
      trailers: Object.fromEntries(passed),
    };
  }
  const isAnswered = ":status" in headers;
  const httpStatus = Number(headers[":status"] ?? 200);
  if (httpStatus !== 200) {
    return ended(BY_HTTP_STATUS[httpStatus] ?? status.UNKNOWN, `Received HTTP status code ${httpStatus}`);
  }
  if (failure && !isAnswered) return ended(status.UNAVAILABLE, failure.message);
  if (isDropped) return ended(status.UNAVAILABLE, "Connection dropped");
  const code = stream.rstCode ?? http2.constants.NGHTTP2_NO_ERROR;
  return ended(
    BY_RESET[code] ?? status.INTERNAL,
    `Received RST_STREAM with code ${code}, and no gRPC status`,
  );
}

/** Neither side is to compress what is read here. */
function uncompressed(headers: http2.IncomingHttpHeaders): http2.IncomingHttpHeaders {
  if (!("grpc-accept-encoding" in headers)) return headers;
  const { "grpc-accept-encoding": _, ...others } = headers;
  return others;
}

function percentDecoded(message: string): string {
  try {
    return decodeURIComponent(message);
  } catch {
    return message;
  }
}

function framed(message: Buffer): Buffer {
  const frame = Buffer.allocUnsafe(PREFIX_BYTES + message.length);
  frame[0] = 0;
  frame.writeUInt32BE(message.length, 1);
  message.copy(frame, PREFIX_BYTES);
  return frame;
}

/** Takes the messages out of a stream's chunks. What cannot be one is refused as tonic does, in its words (codec/decode.rs). */
class Messages {
  /** Set when what came cannot be read; then nothing more is. */
  refusal: Ended | undefined;
  /** What the headers say of it. */
  encoding = "identity";
  #chunks: Buffer[] = [];
  #bytes = 0;
  #wanted = PREFIX_BYTES;

  constructor(readonly longest: number) {}

  /** @returns the messages that this chunk completes. */
  add(chunk: Buffer): Buffer[] {
    const complete: Buffer[] = [];
    if (this.refusal) return complete;
    this.#chunks.push(chunk);
    this.#bytes += chunk.length;
    while (this.#bytes >= this.#wanted) {
      const bytes = this.#chunks.length === 1 ? this.#chunks[0]! : Buffer.concat(this.#chunks);
      const length = bytes.readUInt32BE(1);
      this.refusal = this.#problemOf(bytes[0]!, length);
      if (this.refusal) {
        this.#chunks = [];
        break;
      }
      this.#wanted = PREFIX_BYTES + length;
      this.#chunks = [bytes];
      if (bytes.length < this.#wanted) break;
      complete.push(bytes.subarray(PREFIX_BYTES, this.#wanted));
      const rest = bytes.subarray(this.#wanted);
      this.#chunks = [rest];
      this.#bytes = rest.length;
      this.#wanted = PREFIX_BYTES;
    }
    return complete;
  }

  #problemOf(flag: number, length: number): Ended | undefined {
    if (flag === 1 && this.encoding !== "identity")
      return ended(
        status.UNIMPLEMENTED,
        `Content is compressed with \`${this.encoding}\` which isn't supported`,
      );
    if (flag === 1)
      return ended(
        status.INTERNAL,
        "protocol error: received message with compressed-flag but no grpc-encoding was specified",
      );
    if (flag !== 0)
      return ended(
        status.INTERNAL,
        `protocol error: received message with invalid compression flag: ${flag} (valid flags are 0 and 1) while receiving response with status: 200 OK`,
      );
    if (length <= this.longest) return undefined;
    return ended(
      status.OUT_OF_RANGE,
      `Error, decoded message length too large: found ${length} bytes, the limit is: ${this.longest} bytes`,
    );
  }
}
