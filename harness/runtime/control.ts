// SPDX-License-Identifier: Apache-2.0

/**
 * A keeper's control socket: one JSON object a line, `{id, method, args}` and back `{id, result}` or `{id, error}`.
 *
 * Only this user can reach it, but any program of this user's can, and the keeper must outlive whatever they write. So
 * nothing is called that is not in METHODS, with arguments of these types, and what one connection can make the keeper hold in
 * memory is bounded.
 */
import { chmodSync } from "node:fs";
import { createServer, type Socket } from "node:net";
import { HarnessError } from "../base/errors.ts";
import { ALIVE, parseLine } from "./control-line.ts";
import { DEEDS, type Keeper } from "./keeper.ts";
import type { Run } from "./run.ts";
import type { StackInfo, StackSpec } from "./stack.ts";
import type { EngineRule, Rule } from "../base/faults.ts";

/** The longest request that is read, in bytes. Ours have hundreds, or thousands when a scenario sets rules. */
export const LONGEST_REQUEST = 2 ** 20;
/** Requests of one connection that wait for their answers at a time; ours has a few for each scenario that runs. */
const MOST_UNANSWERED = 1_000;
/** How long whoever wrote too much may go on, to nobody, before its connection is broken, in milliseconds. */
const LISTENING_MS = 1_000;

// What can be asked

type Is = (value: unknown) => boolean;

const text: Is = (value) => typeof value === "string";
const number: Is = (value) => typeof value === "number";
const flag: Is = (value) => typeof value === "boolean";
const object: Is = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const one =
  (...of: readonly unknown[]): Is =>
  (value) =>
    of.includes(value);
/** In JSON, an argument that was left out in the midst of others is `null`. */
const maybe =
  (is: Is): Is =>
  (value) =>
    value === undefined || value === null || is(value);
const list =
  (is: Is): Is =>
  (value) =>
    Array.isArray(value) && value.every(is);
const mapOf =
  (is: Is): Is =>
  (value) =>
    object(value) && Object.values(value as object).every(is);
/** An object with these fields and no others. */
const fields =
  <Of extends object>(known: Record<keyof Of, Is>): Is =>
  (value) => {
    if (!object(value)) return false;
    const given = value as Record<string, unknown>;
    const isKnown = Object.keys(given).every((name) => Object.hasOwn(known, name));
    return isKnown && Object.entries<Is>(known).every(([name, is]) => is(given[name]));
  };

const status = { code: number, message: text };
const rule = fields<Required<Rule>>({
  method: text,
  from: maybe(number),
  times: maybe(number),
  delayMs: maybe(number),
  fail: maybe(fields<NonNullable<Rule["fail"]>>(status)),
  hang: maybe(flag),
  drop: maybe(flag),
  duplicate: maybe(flag),
  reorder: maybe(flag),
  end: maybe(fields<Required<NonNullable<Rule["end"]>>>({ after: number, code: maybe(number) })),
  response: maybe(object),
});
const engineRule = fields<Required<EngineRule>>({
  call: text,
  from: maybe(number),
  times: maybe(number),
  delayMs: maybe(number),
  fail: maybe(fields<NonNullable<EngineRule["fail"]>>({ status: number, message: text })),
  hang: maybe(flag),
  cut: maybe(flag),
  drop: maybe(flag),
  replace: maybe(fields<NonNullable<EngineRule["replace"]>>({ from: text, to: text })),
});
const stackSpec = fields<Required<StackSpec>>({
  tap: maybe(flag),
  tls: maybe(flag),
  driverName: maybe(text),
  tableName: maybe(text),
  table: maybe(mapOf(text)),
  gatewayTable: maybe(object),
  gatewayArgs: maybe(list(text)),
  gatewayEnv: maybe(mapOf(text)),
  order: maybe(one("driver-first", "gateway-first", "gateway-only", "driver-only")),
  engineProxy: maybe(flag),
  holdBridge: maybe(flag),
  probe: maybe(flag),
  deadlineMs: maybe(number),
});
/** Of a driver's context, all but its port are texts. */
const differing: Is = (value) =>
  object(value) &&
  Object.entries(value as object).every(([name, given]) => (name === "port" ? number : text)(given));

/** The methods by name, each with its parameters in their order. */
const METHODS = {
  hello: {},
  startStack: { spec: stackSpec },
  stopStack: { stack: number },
  control: { stack: number, who: one("gateway", "driver"), what: one(...DEEDS) },
  startOtherDriver: { stack: number, differing },
  driverState: { stack: number, driver: number },
  signalDriver: { stack: number, driver: number, signal: text },
  makeCertificates: { stack: number, name: text },
  beginCommand: { mark: text },
  endCommand: { mark: text },
  info: { stack: number },
  floods: {},
  restartEngine: {},
  engineRules: { stack: number, rules: list(engineRule) },
  engineAsked: { stack: number, call: text, count: maybe(number) },
  engineCalls: { stack: number, since: number },
  calls: { stack: number, since: number },
  lastCall: { stack: number },
  rules: { stack: number, rules: list(rule) },
  remember: { stack: number, sandboxId: text },
  engineView: { stack: number },
  leftovers: { stack: number, sandboxIds: maybe(list(text)) },
  removeLeftovers: { stack: number, sandboxIds: maybe(list(text)) },
  report: { who: text, since: number, reports: text },
  reported: {},
  close: {},
} as const satisfies { [Name in keyof Keeper]?: Record<string, Is> };
export type Method = keyof typeof METHODS;

/** A call of the keeper, as a line asks for it. */
interface Request {
  method: Method;
  args: unknown[];
}

/** @throws HarnessError in one line when that is no call of the keeper. */
function check(method: unknown, args: unknown): Request {
  if (!text(method) || !Array.isArray(args))
    throw new HarnessError('A request was expected, as in {"id":1,"method":"hello","args":[]}');
  if (!Object.hasOwn(METHODS, method as string))
    throw new HarnessError(`The keeper knows no method ${JSON.stringify((method as string).slice(0, 80))}`);
  const known = method as Method;
  const parameters = Object.entries<Is>(METHODS[known]);
  if (args.length > parameters.length)
    throw new HarnessError(`${known}: ${parameters.length} arguments were expected, and ${args.length} came`);
  const given = parameters.map(([name, is], position) => {
    const value: unknown = args[position] ?? undefined;
    if (is(value)) return value;
    throw new HarnessError(`${known}: its argument ${position + 1}, ${name}, is missing or of another kind`);
  });
  return { method: known, args: given };
}

// Serving

/**
 * Serves a run's control socket. A connection owns the stacks that it started and the sandboxes that it made:
 * they are removed when it closes, however it closes.
 * @param opening the keeper, which may still be starting; its failure is what every caller then gets.
 * @param onConnection told of each connection that asks for more than a sign of life, and `onIdle` when the last of them has closed.
 */
export async function serveControl(
  run: Run,
  opening: Promise<Keeper>,
  { onConnection, onIdle }: { onConnection: () => void; onIdle: () => void },
): Promise<void> {
  let open = 0;
  const server = createServer((socket) => {
    let isUser = false;
    const onUse = () => {
      if (isUser || socket.destroyed) return;
      isUser = true;
      open++;
      onConnection();
    };
    const caller = new Caller(run, opening, socket, onUse);
    void caller.serve();
    socket.on("close", async () => {
      if (!isUser) return;
      await caller.leave();
      if (--open === 0) onIdle();
    });
  });
  await new Promise<void>((done, reject) => server.once("error", reject).listen(run.controlSocket, done));
  chmodSync(run.controlSocket, 0o600);
}

/** Whoever is at the other end of one connection. */
class Caller {
  readonly #stacks = new Set<number>();
  readonly #sandboxes = new Map<number, Set<string>>();
  readonly #commands = new Set<string>();
  #unanswered = 0;
  #changed = Promise.withResolvers<void>();

  constructor(
    readonly run: Run,
    readonly opening: Promise<Keeper>,
    readonly socket: Socket,
    /** Told of each request but that for a sign of life. */
    readonly onUse: () => void,
  ) {
    // What is wrong with a connection ends it, and "close" is told then.
    socket.on("error", () => {});
    for (const change of ["drain", "close"])
      socket.on(change, () => {
        this.#changed.resolve();
        this.#changed = Promise.withResolvers();
      });
  }

  /**
   * Answers what is asked, until the connection closes. A caller who does not read its answers is not read either: at most
   * one answer more than the socket takes is kept for it.
   */
  async serve(): Promise<void> {
    try {
      for await (const line of linesOf(this.socket)) {
        await Promise.race([this.#answer(line), new Promise(setImmediate)]);
        await this.#roomForAnswers();
      }
    } catch (error) {
      if (!(error instanceof HarnessError)) return void this.socket.destroy();
      this.socket.end(lineOf({ id: null, error: error.message }));
      // The kernel breaks a connection that is closed with something unread, and the error might be lost with it.
      this.socket.resume();
      setTimeout(() => this.socket.destroy(), LISTENING_MS);
    }
  }

  async #roomForAnswers(): Promise<void> {
    while (this.socket.writableNeedDrain && !this.socket.destroyed) await this.#changed.promise;
  }

  async #answer(line: string): Promise<void> {
    const { id, method, args } = parseLine<Record<"id" | "method" | "args", unknown>>(line);
    // Repeated in the answer, unless it is none.
    const known = typeof id === "number" || (typeof id === "string" && id.length < 100) ? id : null;
    if (method === ALIVE) return this.#reply({ id: known, result: true });
    this.onUse();
    this.#unanswered++;
    try {
      if (this.#unanswered > MOST_UNANSWERED)
        throw new HarnessError(
          `${MOST_UNANSWERED} requests of this connection wait for their answers already`,
        );
      const result = await this.#call(check(method, args));
      this.#reply({ id: known, result });
    } catch (error) {
      this.#reply({ id: known, error: (error as Error).message });
    } finally {
      this.#unanswered--;
    }
  }

  #reply(answer: { id: number | string | null; result?: unknown; error?: string }): void {
    if (!this.socket.destroyed && this.socket.writable) this.socket.write(lineOf(answer));
  }

  async #call({ method, args }: Request): Promise<unknown> {
    // One that could not open has stopped everything; what is left to close is the folder.
    if (method === "close" && !(await this.opening.catch(() => undefined))) {
      this.run.remove();
      return [];
    }
    const keeper = await this.opening;
    const result: unknown = await (keeper[method] as (...args: unknown[]) => unknown).apply(keeper, args);
    if (method === "startStack") {
      const { id } = result as StackInfo;
      this.#stacks.add(id);
      // The caller went away while its stack was being started.
      if (this.socket.destroyed) await keeper.stopStack(id);
    }
    if (method === "remember") {
      const [stack, sandboxId] = args as Parameters<Keeper["remember"]>;
      this.#sandboxes.set(stack, (this.#sandboxes.get(stack) ?? new Set()).add(sandboxId));
    }
    if (method === "beginCommand") this.#commands.add(String(args[0]));
    if (method === "stopStack") this.#stacks.delete(Number(args[0]));
    return result;
  }

  /** Removes what the caller has left. On a stack that is kept for others, too, nothing of it may stay. */
  async leave(): Promise<void> {
    const keeper = await this.opening.catch(() => undefined);
    if (!keeper) return;
    const abandon = async (mark: string) => keeper.abandonCommand(mark);
    await Promise.allSettled([...this.#commands].map(abandon));
    await Promise.allSettled([...this.#stacks].map((id) => keeper.stopStack(id)));
    await Promise.allSettled([...this.#sandboxes].map(([id, made]) => keeper.discard(id, made)));
  }
}

const lineOf = (message: object): string => `${JSON.stringify(message)}\n`;

/**
 * The lines that come over a socket. The last one counts only once its end has come: a request of which half was written
 * by whoever was killed then is none.
 * @throws HarnessError when a line is longer than LONGEST_REQUEST; no more than that is kept of it.
 */
async function* linesOf(socket: Socket): AsyncGenerator<string> {
  let begun: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of socket.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
    let from = 0;
    for (let end = chunk.indexOf("\n"); end >= 0; end = chunk.indexOf("\n", from)) {
      yield Buffer.concat([...begun, chunk.subarray(from, end)]).toString();
      begun = [];
      bytes = 0;
      from = end + 1;
    }
    begun.push(chunk.subarray(from));
    bytes += chunk.length - from;
    if (bytes > LONGEST_REQUEST)
      throw new HarnessError(`A request has at most ${LONGEST_REQUEST} bytes: the connection is closed`);
  }
}
