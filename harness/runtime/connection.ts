// SPDX-License-Identifier: Apache-2.0

/** The way to a keeper: how one is started and spoken to. One JSON object a line, `{id, method, args}` and back. */
import { ROOT } from "../base/root.ts";
import { closeSync, existsSync, openSync, readFileSync } from "node:fs";
import { connect as connectSocket, type Socket } from "node:net";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { BUN, keeperEnvironment } from "../base/environment.ts";
import { fail, HarnessError } from "../base/errors.ts";
import { tailOf } from "../base/log.ts";
import { mustStartPrograms } from "../base/machine.ts";
import { isOurs } from "../base/owner.ts";
import { shareSecrets } from "../base/secrets.ts";
import { PLACES, type Settings, SETTINGS } from "../base/settings.ts";
import { isAlive } from "../base/system.ts";
import { eventually, named, within } from "../base/waiting.ts";
import { ALIVE, parseLine } from "./control-line.ts";
import type { Method } from "./control.ts";
import type { Keeper } from "./keeper.ts";
import { RUN_MARK } from "./marks.ts";
import { LAST_WORDS } from "./memory.ts";
import { bringsEngine, describeParts, findParts } from "./places.ts";
import { floodWords } from "./process.ts";
import { cacheFolder } from "./programs.ts";
import { KEEPER_PID, Run, STARTER } from "./run.ts";

const HARNESS = join(ROOT, "harness.ts");

/**
 * A keeper that is asked for a sign of life so often, `everyMs` apart, and gives none is stopped or stuck: whoever waits for
 * it is told. Signs are counted, not time: a machine that was suspended says nothing of the keeper.
 */
export const SILENCE = { signs: 6, everyMs: 5_000 };

/** What takes longest: a stack's first start may pull an image. */
const ANSWER_MS = 660_000;

/** A connection to a keeper. Its end ends the stacks that were started over it. */
export class Connection {
  readonly #waiting = new Map<number, { done: (value: unknown) => void; failed: (error: Error) => void }>();
  readonly closed: Promise<void>;
  static readonly #open = new Set<Connection>();
  #gone = false;
  #id = 0;
  /** How many signs of life were asked for since the keeper said anything. */
  #unanswered = 0;
  #heartbeat: Timer | undefined;

  private constructor(
    readonly socket: Socket,
    /** Whose keeper it is: where the run's files are is known from here, never from what a keeper answers. */
    readonly run: Run,
  ) {
    const lastWords = openLastWords(run);
    const lines = createInterface({ input: socket });
    // It tells of the socket's, whose end is what counts.
    lines.on("error", () => {});
    lines.on("line", (line) => {
      this.#unanswered = 0;
      const { id = 0, result, error } = parseLine<{ id: number; result?: unknown; error?: string }>(line);
      const waiting = this.#waiting.get(id);
      this.#waiting.delete(id);
      if (error === undefined) waiting?.done(result);
      else waiting?.failed(new HarnessError(error));
    });
    Connection.#open.add(this);
    const closed = Promise.withResolvers<void>();
    this.closed = closed.promise;
    socket.once("close", () => {
      Connection.#open.delete(this);
      const why = lastWords === undefined ? "" : readFileSync(lastWords, "utf8");
      if (lastWords !== undefined) closeSync(lastWords);
      // Whatever fails from here on fails for that reason, which is told once.
      if (why) fail(new HarnessError(why));
      clearInterval(this.#heartbeat);
      this.#gone = true;
      for (const { failed } of this.#waiting.values()) failed(new HarnessError("The keeper is gone"));
      closed.resolve();
    });
  }

  /** @throws Error when nobody listens, or another user made the socket. */
  static open(run: Run): Promise<Connection> {
    return new Promise((done, reject) => {
      if (existsSync(run.controlSocket) && !isOurs(run.controlSocket))
        throw new HarnessError(`${run.controlSocket} belongs to another user`);
      const socket = connectSocket(run.controlSocket);
      // It stays: a reset may be told twice, and later ones are the business of "close".
      socket.on("error", reject);
      socket.once("connect", () => {
        // A test process must be able to end while it is connected.
        socket.unref();
        shareSecrets(run.folder);
        done(new Connection(socket, run));
      });
    });
  }

  #askForSign(): void {
    if (this.#unanswered++ < SILENCE.signs)
      return void this.socket.write(`${JSON.stringify({ id: 0, method: ALIVE, args: [] })}\n`);
    for (const { failed } of this.#waiting.values())
      failed(new HarnessError(`run ${this.run.id}: ${this.run.silence}`));
    this.#waiting.clear();
    this.socket.destroy();
  }

  /**
   * Calls one of the keeper's methods.
   * @throws HarnessError with what it answers, when it is gone, or when it gives no sign of life meanwhile.
   */
  async call<M extends Method>(
    method: M,
    ...args: Parameters<Keeper[M]>
  ): Promise<Awaited<ReturnType<Keeper[M]>>> {
    if (this.#gone) throw new HarnessError("The keeper is gone");
    const id = ++this.#id;
    const answer = new Promise<unknown>((done, failed) => this.#waiting.set(id, { done, failed }));
    this.socket.ref();
    if (!this.#heartbeat) {
      this.#unanswered = 0;
      this.#heartbeat = setInterval(() => this.#askForSign(), SILENCE.everyMs);
      this.#heartbeat.unref();
    }
    this.socket.write(`${JSON.stringify({ id, method, args })}\n`);
    try {
      return (await within(ANSWER_MS, `keeper: ${method}`, answer)) as Awaited<ReturnType<Keeper[M]>>;
    } finally {
      if (this.#waiting.size === 0) this.#rest();
    }
  }

  /** Nobody waits: this process may end, and needs no sign of life. */
  #rest(): void {
    this.socket.unref();
    clearInterval(this.#heartbeat);
    this.#heartbeat = undefined;
  }

  close(): void {
    this.socket.destroy();
  }

  /** Ends all that this process had started, or had in use. */
  static closeAll(): void {
    for (const connection of Connection.#open) connection.close();
  }
}

/** The file in which a keeper says why it had to end, opened while it lives: afterwards its guard removes the folder. */
function openLastWords(run: Run): number | undefined {
  try {
    return openSync(join(run.folder, LAST_WORDS), "r");
  } catch {
    return undefined;
  }
}

/** What a sweep does without: a program that is gone by then, or a socket, must not keep it from its work. */
const needless = (): string[] =>
  SETTINGS.map(([, variable]) => variable).filter((name) => name !== "OPENSHELL_E2E_REPORTS");

/**
 * What a shell does with a run's folder ($0) and our own command line ($@): it makes the folder, starts the keeper, and
 * beside it the guard, which waits for the keeper's end and then sweeps what is left. The guard learns of the end from
 * a pipe that the keeper, and nobody else, holds open; so whoever is killed, and when, one of the two removes the run.
 * Where the folder is gone, because the keeper or somebody else removed it, there still may be processes (on Linux).
 * @param starter the pid of the process that is going to connect. (Not `$PPID`: it may have died before the shell began.)
 */
const keeperAndGuard = (starter: number): string => `
umask 077
mkdir -p "$0" || exit
{ sh -c 'echo $$ >"$0/${KEEPER_PID}"; echo ${starter} >"$0/${STARTER}"; exec "$@" 3>&1 </dev/null >>"$0/keeper.log" 2>&1' "$0" "$@" keep "$0" ${starter} |
  { trap "" INT TERM HUP; unset ${needless().join(" ")}; read -r _
    [ -d "$0" ] || cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n' | grep -qF -e "${RUN_MARK}=\${0##*/}" -e "OPENSHELL_FAKE_ROOT=$0/" || exit
    exec "$@" sweep --guard --run "$0"; }
} >/dev/null 2>&1 &`;

/**
 * Starts a keeper in a session of its own, twice removed from this process, and connects to it. `bun test` ends the
 * children that it knows when a test times out; it does not know this one.
 */
export async function startKeeper(run: Run, settings: Settings): Promise<Connection> {
  // What the settings contradict is said here, not by a keeper that ends.
  const parts = findParts(settings);
  if (!parts.engine.real && !bringsEngine(settings)) mustStartPrograms(dirname(run.folder));
  if (PLACES.some((place) => !parts[place].real)) cacheFolder();
  const absent = ["sh", "mkdir"].find((program) => !Bun.which(program));
  if (absent)
    throw new HarnessError(`There is no ${absent} in PATH, with which a run is started: ${process.env.PATH}`);
  const shell = Bun.spawn(["sh", "-c", keeperAndGuard(process.pid), run.folder, ...BUN, HARNESS], {
    env: keeperEnvironment(settings),
    detached: true,
    stdin: "ignore",
    stdout: "ignore",
    stderr: "inherit",
  });
  if ((await shell.exited) !== 0) throw new HarnessError(`The run's folder cannot be made: ${run.folder}`);
  const pid = () => Number(readFileSync(join(run.folder, "keeper.pid"), "utf8"));
  return eventually(() => Connection.open(run), {
    what: "keeper: open its control socket",
    deadlineMs: 10_000,
    failed: () => {
      const started = existsSync(join(run.folder, "keeper.pid"));
      if (!started || isAlive(pid())) return undefined;
      return `it ended:\n${tailOf(join(run.folder, "keeper.log"), 20)}`;
    },
  });
}

/**
 * Does `work` with a new keeper, and ends it: resolves only when everything is gone, also when `work` fails.
 * @returns what `work` returned, what had to be removed by force, a line each, and why its reports were not written, if so:
 * that has been said.
 * @param stop once it is aborted, it is said what is waited for.
 */
export async function withKeeper<T>(
  settings: Settings,
  work: (keeper: Connection, run: Run) => Promise<T>,
  stop?: AbortSignal,
) {
  const run = Run.create(settings);
  const keeper = await startKeeper(run, settings);
  let left: string[] = [];
  try {
    const result = await work(keeper, run);
    for (const flood of await keeper.call("floods")) console.error(floodWords(flood));
    left = await named(stop, `run ${run.id} to be cleared away`, keeper.call("close"));
    const { problem } = await keeper.call("reported");
    if (problem) console.error(`openshell-e2e: ${problem}`);
    return { result, left, problem };
  } finally {
    // A keeper that could not open has cleaned up already, and says its failure again.
    await keeper.call("close").catch(() => {});
    keeper.close();
  }
}

/**
 * The connection to a stack that `bun harness.ts up` keeps, if there is one and it has the parts we would use. Says that
 * it is not a stack of our own, and what was told to go wrong in it.
 */
export async function attach(settings: Settings): Promise<Connection | undefined> {
  const wanted = findParts(settings);
  for (const run of settings.attach === "1" ? Run.all(settings) : []) {
    const kept = join(run.folder, "up");
    if (!existsSync(kept)) continue;
    if ((await run.state()) === "silent") {
      console.error(`The stack of run ${run.id} stays aside: ${run.silence}`);
      continue;
    }
    const connection = await Connection.open(run).catch(() => undefined);
    if (!connection) continue;
    const { parts } = await connection.call("hello");
    if (PLACES.every((place) => parts[place].command.join(" ") === wanted[place].command.join(" "))) {
      const faults = readFileSync(kept, "utf8").replaceAll("\n", "; ") || "none";
      console.error(`attached to run ${run.id}, kept by up; faults: ${faults}`);
      return connection;
    }
    console.error(`The stack of run ${run.id} stays aside: its parts differ (${describeParts(parts)})`);
    connection.close();
  }
  return undefined;
}
