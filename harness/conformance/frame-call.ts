// SPDX-License-Identifier: Apache-2.0

/**
 * A call in HTTP/2 frames of our own. HTTP/2 lets a client say how much it will take, and a server say that it is about to
 * go; libraries take some at once, and hang up. This client does neither: it reads when it is told to, and stays on.
 */
import { connect, type Socket } from "node:net";
import { eventually } from "../base/waiting.ts";
import { computeDriver } from "../../proto/contract.ts";
import { patient, Violation } from "./finding.ts";
import type { Event } from "./driver.ts";

const [DATA, HEADERS, SETTINGS, PING, WINDOW_UPDATE] = [0, 1, 4, 6, 8];
const [END_STREAM, ACK, END_HEADERS] = [1, 1, 4];
const INITIAL_WINDOW_SIZE = 4;
/** What a gateway reads at most of a message, in bytes. */
const LONGEST = 4 * 2 ** 20;
/** The whole connection's window cannot begin smaller than this. */
const LARGE = 1 << 24;

/** One call on a connection of its own. */
export class FrameCall implements Disposable {
  /** What was read; nothing before `read`. */
  readonly events: Event[] = [];
  readonly #socket: Socket;
  #received = Buffer.alloc(0);
  #stream = Buffer.alloc(0);
  #accepted = false;
  /** Whether there is nothing more to come. */
  over = false;
  /** Whether the driver has ended the connection. */
  closed = false;
  /** Why what came cannot be read; nothing more is read then. */
  problem: string | undefined;

  private constructor(path: string, method = "WatchSandboxes", request: Buffer = Buffer.alloc(0)) {
    this.#socket = connect(path);
    this.#socket.on("error", () => {});
    this.#socket.on("close", () => (this.over = this.closed = true));
    this.#socket.on("data", (chunk: Buffer) => this.#receive(chunk));
    this.#socket.write("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    const noWindow = Buffer.alloc(6);
    noWindow.writeUInt16BE(INITIAL_WINDOW_SIZE);
    this.#send(SETTINGS, 0, 0, noWindow);
    this.#send(HEADERS, END_HEADERS, 1, headersOf(method));
    const prefix = Buffer.alloc(5);
    prefix.writeUInt32BE(request.length, 1);
    this.#send(DATA, END_STREAM, 1, Buffer.concat([prefix, request]));
  }

  /**
   * Makes a unary call, which counts as an event once it is answered. Unlike a library's it is not given up when the
   * driver announces its end, and neither is a gateway's.
   */
  static ask(path: string, method: string, request: Buffer): FrameCall {
    const call = new FrameCall(path, method, request);
    call.read();
    return call;
  }

  /** Opens a watch from which nothing is read. Resolves when the driver accepted it, or after a second of silence. */
  static async watch(path: string): Promise<FrameCall> {
    const watch = new FrameCall(path);
    const accepted = () => {
      if (!watch.#accepted) throw new Error("no headers");
    };
    await eventually(accepted, { what: "a watch", deadlineMs: patient(1_000) }).catch(() => {});
    return watch;
  }

  /** @throws Violation when something came that a gateway could not read */
  mustBeReadable(): void {
    if (this.problem) throw new Violation("a message that a gateway can read", this.problem);
  }

  /** Reads what came, and whatever comes from now on. */
  read(): void {
    const size = Buffer.alloc(4);
    size.writeUInt32BE(LARGE);
    this.#send(WINDOW_UPDATE, 0, 0, size);
    this.#send(WINDOW_UPDATE, 0, 1, size);
  }

  #send(type: number, flags: number, stream: number, payload: Buffer): void {
    const head = Buffer.alloc(9);
    head.writeUIntBE(payload.length, 0, 3);
    head.set([type, flags], 3);
    head.writeUInt32BE(stream, 5);
    this.#socket.write(Buffer.concat([head, payload]));
  }

  #receive(chunk: Buffer): void {
    this.#received = Buffer.concat([this.#received, chunk]);
    for (;;) {
      const end = 9 + (this.#received.length < 9 ? Infinity : this.#received.readUIntBE(0, 3));
      if (this.#received.length < end) return;
      const [type, flags] = [this.#received[3]!, this.#received[4]!];
      this.#frame(type, flags, this.#received.subarray(9, end));
      this.#received = this.#received.subarray(end);
    }
  }

  #frame(type: number, flags: number, payload: Buffer): void {
    if (type === SETTINGS && !(flags & ACK)) this.#send(SETTINGS, ACK, 0, Buffer.alloc(0));
    if (type === PING && !(flags & ACK)) this.#send(PING, ACK, 0, payload);
    if (type === HEADERS) this.#accepted = true;
    if (type === HEADERS && flags & END_STREAM) this.over = true;
    if (type === DATA) this.#message(payload);
  }

  /** Takes the messages out of the stream: a byte for compression, four of length, and the message. */
  #message(payload: Buffer): void {
    this.#stream = Buffer.concat([this.#stream, payload]);
    while (this.#stream.length >= 5) {
      const [flag, length] = [this.#stream[0], this.#stream.readUInt32BE(1)];
      if (flag !== 0)
        return this.#giveUp(`a message with the compression flag ${flag}, and none was agreed on`);
      if (length > LONGEST) return this.#giveUp(`a message of ${length} bytes, ${LONGEST} are the most`);
      if (this.#stream.length < 5 + length) return;
      const { responseDeserialize } = computeDriver().ComputeDriver.service.WatchSandboxes;
      try {
        this.events.push(responseDeserialize(this.#stream.subarray(5, 5 + length)));
      } catch (error) {
        return this.#giveUp((error as Error).message);
      }
      this.#stream = this.#stream.subarray(5 + length);
    }
  }

  #giveUp(problem: string): void {
    this.problem = problem;
    this.#socket.destroy();
  }

  [Symbol.dispose](): void {
    this.#socket.destroy();
  }
}

/** The request's headers: literals, neither indexed nor compressed. */
const headersOf = (method: string): Buffer =>
  Buffer.concat(
    Object.entries({
      ":method": "POST",
      ":scheme": "http",
      ":path": `/openshell.compute.v1.ComputeDriver/${method}`,
      ":authority": "[::]:50051",
      "content-type": "application/grpc",
      te: "trailers",
    }).flatMap(([name, value]) => [
      Buffer.from([0, name.length]),
      Buffer.from(name),
      Buffer.from([value.length]),
      Buffer.from(value),
    ]),
  );
