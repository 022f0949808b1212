// SPDX-License-Identifier: Apache-2.0

/**
 * A proxy on a Unix socket between a driver and its engine, whatever that is. It passes bytes on as they are, one
 * request a connection, and by rules makes the engine slow, failing, silent, or gone.
 */
import { chmodSync, rmSync } from "node:fs";
import { connect, createServer, type Server, type Socket } from "node:net";
import { HarnessError } from "../../base/errors.ts";
import type { EngineRule } from "../../base/faults.ts";
import { eventually } from "../../base/waiting.ts";
import { now } from "../../report/record.ts";

/** One call that came. `at` is in milliseconds since 1970; `status` is unset while there is no answer. */
export interface ProxiedCall {
  call: string;
  at: number;
  status?: number;
}

/** A connection with its one call. */
interface Passing {
  client: Socket;
  record: ProxiedCall;
  /** The request as it goes to the engine. */
  request: Buffer;
  /** It waits for other rules. */
  held: boolean;
}

const KEPT_CALLS = 2_000;

const LONGEST_HEAD = 64 * 1024;

/** An open proxy. */
export class EngineProxy {
  readonly calls: ProxiedCall[] = [];
  readonly #passing = new Set<Passing>();
  readonly #sockets = new Set<Socket>();
  #rules: EngineRule[] = [];

  #server: Server | undefined;

  private constructor(
    readonly socket: string,
    readonly engine: string,
  ) {}

  /** Listens on `socket` (mode 0600) for the engine on the Unix socket `engine`. */
  static async open(socket: string, engine: string): Promise<EngineProxy> {
    const proxy = new EngineProxy(socket, engine);
    await proxy.listen();
    return proxy;
  }

  /** Listens again, after `close`. */
  async listen(): Promise<void> {
    const server = (this.#server = createServer((client) => this.#accept(client)));
    await new Promise<void>((done, reject) => server.once("error", reject).listen(this.socket, done));
    chmodSync(this.socket, 0o600);
  }

  /** Breaks every connection and removes the socket: for a driver, the engine is gone. */
  close(): void {
    this.#server?.close();
    for (const socket of this.#sockets) socket.destroy();
    rmSync(this.socket, { force: true });
  }

  /** How many calls are kept back now. */
  get held(): number {
    return [...this.#passing].filter(({ held }) => held).length;
  }

  /** The rules from now on; also for the calls that are held, and, where they say `drop`, for those under way. */
  set rules(rules: EngineRule[]) {
    const wrong = rules.find(({ replace }) => replace && replace.to.length > replace.from.length);
    if (wrong) throw new HarnessError(`engine rule ${JSON.stringify(wrong)}: \`to\` is longer than \`from\``);
    this.#rules = rules.map((rule) => ({ ...rule }));
    for (const passing of this.#passing) {
      const { client, record } = passing;
      if (this.#rules.some((rule) => rule.drop && matches(rule, record.call))) client.destroy();
      else if (passing.held) this.#treat(passing);
    }
  }

  #accept(client: Socket): void {
    this.#own(client);
    let head = Buffer.alloc(0);
    const read = (chunk: Buffer) => {
      head = Buffer.concat([head, chunk]);
      const end = head.indexOf("\r\n\r\n");
      if (end < 0) return void (head.length > LONGEST_HEAD && client.destroy());
      client.off("data", read).pause();
      const record = { call: nameOf(head.toString("latin1", 0, end)), at: now() };
      this.calls.push(record);
      if (this.calls.length > KEPT_CALLS) this.calls.shift();
      const passing = { client, record, request: oneRequest(head, end), held: false };
      this.#passing.add(passing);
      client.once("close", () => this.#passing.delete(passing));
      this.#treat(passing);
    };
    client.on("data", read);
  }

  #treat(passing: Passing): void {
    const { client, record } = passing;
    const rule = this.#rule(record.call);
    passing.held = rule?.hang === true;
    if (passing.held) return;
    if (rule?.drop) client.destroy();
    else if (rule?.fail) {
      record.status = rule.fail.status;
      client.end(refusal(rule.fail));
    } else if (rule?.delayMs) setTimeout(() => client.destroyed || this.#pass(passing, rule), rule.delayMs);
    else this.#pass(passing, rule);
  }

  #pass({ client, record, request }: Passing, rule?: EngineRule): void {
    const engine = connect(this.engine);
    this.#own(engine);
    client.once("close", () => engine.destroy());
    engine.once("close", () => client.destroyed || client.end());
    engine.write(request);
    client.pipe(engine);
    let answer = Buffer.alloc(0);
    engine.on("data", (chunk: Buffer) => {
      record.status ??= Number(chunk.toString("latin1", 9, 12));
      if (rule?.cut) return void client.end(chunk.subarray(0, chunk.length / 2), () => client.destroy());
      if (rule?.replace) return void (answer = Buffer.concat([answer, chunk]));
      if (!client.write(chunk)) engine.pause();
    });
    client.on("drain", () => engine.resume());
    engine.on("end", () => (rule?.replace ? client.end(lie(answer, rule.replace)) : client.end()));
  }

  #own(socket: Socket): void {
    this.#sockets.add(socket);
    // The close event follows.
    socket.on("error", () => {}).once("close", () => this.#sockets.delete(socket));
  }

  #rule(call: string): EngineRule | undefined {
    const rule = this.#rules.find((candidate) => candidate.times !== 0 && matches(candidate, call));
    if (rule?.from !== undefined && --rule.from > 0) return undefined;
    if (rule?.times !== undefined) rule.times--;
    return rule;
  }

  /** Waits until such a call came, the first or number `count`. */
  async asked(call: string, count = 1): Promise<void> {
    const look = () => {
      if (this.calls.filter((seen) => matches({ call }, seen.call)).length < count)
        throw new Error(this.calls.map((seen) => seen.call).join(", ") || "no call at all");
    };
    await eventually(look, { what: `the driver to ask the engine for ${call}`, deadlineMs: 10_000 });
  }
}

const matches = ({ call }: Pick<EngineRule, "call">, seen: string): boolean =>
  new RegExp(`^${call.split("*").map(RegExp.escape).join(".*")}$`).test(seen);

/** "POST containers/create", of a request line such as `POST /v5.0.0/libpod/containers/create?x=y HTTP/1.1`. */
function nameOf(head: string): string {
  const [method = "", target = ""] = head.split(/[ \r]/, 2);
  // Some clients name the server too: `GET http://localhost/v5.0.0/libpod/info`.
  const path = target.replace(/^\w+:\/\/[^/]*/, "").replace(/\?.*$/, "");
  return `${method} ${path.replace(/^\/(v[\d.]+\/)?(libpod\/)?/, "")}`;
}

/** The request with the wish that the connection end with its answer, so that each connection has one call to judge. */
function oneRequest(request: Buffer, headEnd: number): Buffer {
  const [line = "", ...headers] = request.toString("latin1", 0, headEnd).split("\r\n");
  const kept = headers.filter((header) => !/^(connection|keep-alive):/i.test(header));
  const head = [line, ...kept, "Connection: close", "", ""].join("\r\n");
  return Buffer.concat([Buffer.from(head, "latin1"), request.subarray(headEnd + 4)]);
}

function refusal({ status, message }: { status: number; message: string }): string {
  const body = `${JSON.stringify({ cause: message, message, response: status })}\n`;
  const head = [
    `HTTP/1.1 ${status} Fault`,
    "Content-Type: application/json",
    `Content-Length: ${Buffer.byteLength(body)}`,
    "Connection: close",
  ];
  return `${head.join("\r\n")}\r\n\r\n${body}`;
}

/** An answer with other words in it, of the same length: JSON does not mind blanks between its tokens. */
const lie = (answer: Buffer, { from, to }: { from: string; to: string }): Buffer =>
  Buffer.from(answer.toString("latin1").replaceAll(from, to.padEnd(from.length)), "latin1");
