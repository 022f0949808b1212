// SPDX-License-Identifier: Apache-2.0

/**
 * `soak [--sandboxes 200] [--parallel 16] [--minutes 10] [--chaos] [--seed N]`: many sandboxes live their whole lives,
 * some at a time, until there were enough or the time is over. With chaos, calls between gateway and driver go wrong and
 * the driver dies now and then. At the end: latencies, memory, file descriptors, and every promise that was broken.
 */
import { existsSync, readdirSync } from "node:fs";
import type { Command } from "../command-line.ts";
import { eventually, interruptible, unless } from "../base/waiting.ts";
import { EXIT, HarnessError } from "../base/errors.ts";
import { RunningStack } from "../running-stack.ts";
import type { Sandbox } from "../client/gateway.ts";
import type { Settings } from "../base/settings.ts";
import { withKeeper } from "../runtime/connection.ts";
import { describeParts } from "../runtime/places.ts";
import { residentMegabytes } from "../runtime/run.ts";
import { parseFault } from "../runtime/faults/rules.ts";
import { codeName } from "../../proto/contract.ts";
import { plural } from "../base/text.ts";
import { say } from "../base/readable.ts";

/** How much, and how. */
interface Plan {
  sandboxes: number;
  parallel: number;
  minutes: number;
  chaos: boolean;
  /** Of the chaos: the same seed makes the same faults, in the same order. */
  seed: number;
}

export const command: Command = (settings, _args, own) => interruptible((stop) => soak(settings, own, stop));

async function soak(settings: Settings, own: Record<string, string>, stop: AbortSignal): Promise<number> {
  if (own.seed !== undefined && own.chaos === undefined)
    throw new HarnessError("--seed: it is that of the chaos: --chaos was expected beside it");
  const plan: Plan = {
    sandboxes: number(own, "sandboxes", 200, 100_000),
    parallel: number({ parallel: settings.parallel }, "parallel", 16, 99),
    minutes: number(own, "minutes", 10, 1_440),
    chaos: own.chaos === "1",
    seed: number(own, "seed", Date.now() % 100_000, 1_000_000),
  };
  const { result: broken, left } = await withKeeper(settings, async (keeper) => {
    say(describeParts((await keeper.call("hello")).parts));
    const stack = await unless(stop, keeper.call("startStack", {}));
    const soak = new Soak(new RunningStack(keeper, stack), plan);
    await soak.run(stop);
    return soak.report();
  });
  for (const line of left) say(`left behind, removed: ${line}`);
  if (broken > 0) return EXIT.failed;
  return left.length > 0 ? EXIT.leftovers : EXIT.ok;
}

function number(own: Record<string, string>, flag: string, fallback: number, most: number): number {
  const given = own[flag];
  if (!given) return fallback;
  if (!/^\d+$/.test(given) || Number(given) < 1 || Number(given) > most)
    throw new HarnessError(`--${flag}: a number from 1 to ${most} was expected: ${given}`);
  return Number(given);
}

const PROGRESS_MS = process.stdout.isTTY ? 500 : 10_000;
/** How long a sandbox whose life was cut short may take to be deleted, in milliseconds. */
const DELETE_MS = 90_000;

/** What refusals a user may meet while things break. Anything else, and any of them without chaos, is a broken promise. */
const EXCUSED = new Set([
  "UNAVAILABLE",
  "INTERNAL",
  "FAILED_PRECONDITION",
  "ABORTED",
  "DEADLINE_EXCEEDED",
  "CANCELLED",
]);

class Soak {
  readonly #latencies = new Map<string, number[]>();
  readonly #refused = new Map<string, number>();
  /** Promises that were broken, and how often. */
  readonly #broken = new Map<string, number>();
  readonly #faults: string[] = [];
  readonly #random: () => number;
  readonly #began = performance.now();
  #before: Usage[] = [];
  #begun = 0;
  #ended = 0;
  #alive = 0;
  /** How many creates and deletes are under way, and what they wait for. See #undisturbed. */
  #delicate = 0;
  #gate: Promise<void> = Promise.resolve();

  constructor(
    readonly stack: RunningStack,
    readonly plan: Plan,
  ) {
    this.#random = generator(plan.seed);
  }

  get #timeLeft(): number {
    return this.plan.minutes * 60_000 - (performance.now() - this.#began);
  }

  /** Lives all lives; once `stop` is aborted none is begun, and those under way go on to their end. */
  async run(stop: AbortSignal): Promise<void> {
    const { sandboxes, parallel, chaos, seed } = this.plan;
    this.#before = usage(this.stack);
    const ticker = setInterval(() => this.#progress(), PROGRESS_MS);
    const over = new AbortController();
    const faults = chaos ? this.#wreak(over.signal) : Promise.resolve();
    if (chaos) say(`chaos with --seed ${seed}`);
    const worker = async () => {
      while (this.#begun < sandboxes && this.#timeLeft > 0 && !stop.aborted) {
        this.#begun++;
        await this.#life();
      }
    };
    try {
      await Promise.all(Array.from({ length: parallel }, worker));
    } finally {
      over.abort();
      await faults;
      clearInterval(ticker);
    }
    this.#progress();
    if (process.stdout.isTTY) say("");
    // Whatever comes of it, what was measured is told.
    await this.#settle().catch((error: Error) =>
      this.#break(`the stack answers in the end: ${error.message.split("\n")[0]}`),
    );
  }

  // One sandbox

  async #life(): Promise<void> {
    this.#alive++;
    try {
      const box = await this.#timed("create", () =>
        this.#undisturbed(() => this.stack.gateway.createSandbox()),
      );
      await this.#live(box).catch(async (error) => {
        this.#judge(error);
        await this.#remove(box);
      });
    } catch (error) {
      this.#judge(error);
    } finally {
      this.#alive--;
      this.#ended++;
    }
  }

  async #live(box: Sandbox): Promise<void> {
    const mark = crypto.randomUUID();
    await this.#timed("ready", () => box.ready());
    const write = ["sh", "-c", `echo ${mark} >mark && cat mark`];
    await this.#says(box, write, mark, "a command's output is its own");
    await this.#timed("stop", () => box.stop());
    if (box.phase !== "STOPPED") this.#break(`a sandbox that was stopped is STOPPED, not ${box.phase}`);
    await this.#timed("start", async () => (await box.start()).ready());
    await this.#says(box, ["cat", "mark"], mark, "a workspace survives stop and start");
    await this.#timed("delete", () => this.#undisturbed(() => box.delete()));
  }

  /** Deletes a sandbox whose life was cut short, however often that is refused while things break. */
  async #remove(box: Sandbox): Promise<void> {
    const { sandboxes } = this.stack.gateway;
    const attempt = () =>
      this.#undisturbed(() => box.delete()).catch((error) => {
        if (codeOf(error) !== "NOT_FOUND") throw error;
        sandboxes.delete(box);
      });
    await eventually(attempt, { what: `delete ${box.name}`, deadlineMs: DELETE_MS }).catch((error: Error) =>
      this.#break(`a sandbox can be deleted after all: ${error.message.split("last seen: ")[1]}`),
    );
  }

  /**
   * Work in whose midst no driver is killed: a gateway does not make good for it. What was being created is nobody's
   * afterwards, and what was being deleted stays DELETING until the gateway's reconcile, for minutes.
   */
  async #undisturbed<T>(work: () => Promise<T>): Promise<T> {
    await this.#gate;
    this.#delicate++;
    try {
      return await work();
    } finally {
      this.#delicate--;
    }
  }

  async #says(box: Sandbox, argv: string[], mark: string, promise: string): Promise<void> {
    const { stdout, exitCode, stderr } = await this.#timed("exec", () => box.exec(argv));
    if (stdout.trim() === mark && exitCode === 0) return;
    // A sandbox that loses its supervisor loses the command too; that is no wrong answer.
    if (this.plan.chaos && exitCode !== 0)
      return void this.#count(this.#refused, `exec: exit code ${exitCode}`);
    this.#break(
      `${promise}: exit code ${exitCode}, ${JSON.stringify(stdout.slice(0, 80))} ${stderr.slice(0, 80)}`,
    );
  }

  async #timed<T>(operation: string, work: () => Promise<T>): Promise<T> {
    const began = performance.now();
    try {
      const result = await work();
      const all = this.#latencies.get(operation) ?? [];
      this.#latencies.set(operation, all);
      all.push(performance.now() - began);
      return result;
    } catch (error) {
      throw Object.assign(error as Error, { operation });
    }
  }

  /** A refusal is excused while things break; everything else breaks a promise. */
  #judge(error: unknown): void {
    const { operation = "?", message } = error as Error & { operation?: string };
    const code = codeOf(error);
    const said = `${operation}: ${code ?? ""} ${message.split("\n")[0]}`.replace(/sandbox \S+/g, "sandbox …");
    if (this.plan.chaos && (code === undefined ? error instanceof HarnessError : EXCUSED.has(code)))
      return this.#count(
        this.#refused,
        `${operation}: ${code ?? message.split("\n")[0]?.replace(/^sandbox \S+: /, "")}`,
      );
    this.#break(`every step of a life succeeds: ${said}`);
  }

  #break = (promise: string): void => this.#count(this.#broken, promise);

  #count(counts: Map<string, number>, what: string): void {
    counts.set(what, (counts.get(what) ?? 0) + 1);
  }

  // Chaos

  /** Breaks something every second or so, until told to stop; then everything works again. */
  async #wreak(over: AbortSignal): Promise<void> {
    const pick = <T>(choices: readonly T[]): T => choices[Math.floor(this.#random() * choices.length)]!;
    while (!over.aborted) {
      const fault = pick(FAULTS);
      this.#faults.push(fault);
      if (fault === KILL) await this.#killDriver();
      else await this.stack.rules(parseFault(fault));
      await pause(500 + this.#random() * 1_500, over);
    }
    await this.stack.rules();
  }

  async #killDriver(): Promise<void> {
    const opened = Promise.withResolvers<void>();
    this.#gate = opened.promise;
    try {
      const idle = () => {
        if (this.#delicate > 0) throw new Error(`${this.#delicate} are under way`);
      };
      await eventually(idle, { what: "no create and no delete under way", deadlineMs: 60_000 });
      await this.stack.control("driver", "kill");
      await this.stack.control("driver", "start");
      await this.#watched();
    } catch (error) {
      this.#break(`a driver that was killed starts again: ${(error as Error).message.split("\n")[0]}`);
    } finally {
      opened.resolve();
    }
  }

  /** Waits until the gateway watches the driver again, which it tries every 2 s. */
  async #watched(): Promise<void> {
    const open = async () => {
      const last = (await this.stack.calls()).findLast(({ method }) => method === "WatchSandboxes");
      if (last?.status) throw new Error(`the last watch ended with ${last.status}`);
    };
    await eventually(open, { what: "the gateway to watch the driver again", deadlineMs: 10_000 });
  }

  // The end

  /** Looks for what should not be there any more. */
  async #settle(): Promise<void> {
    const { stack } = this;
    const listed = await stack.gateway.listSandboxes();
    for (const name of listed) this.#break(`nothing is listed after all was deleted: ${name}`);
    for (const line of await stack.cleanUp()) this.#break(`nothing is left on the engine: ${line}`);
  }

  #progress(): void {
    const seconds = Math.round((performance.now() - this.#began) / 1_000);
    const wrong = [...this.#broken.values()].reduce((sum, count) => sum + count, 0);
    const line = `${seconds} s: ${this.#ended} of ${this.plan.sandboxes} lives, ${this.#alive} now, ${this.#faults.length} faults, ${wrong} broken promises`;
    if (process.stdout.isTTY) process.stdout.write(`\r\x1b[K${line}`);
    else say(line);
  }

  /** Prints what came of it. Resolves with how many promises were broken. */
  report(): number {
    const seconds = (performance.now() - this.#began) / 1_000;
    say(`\n${this.#ended} lives in ${seconds.toFixed(0)} s, ${this.plan.parallel} at a time\n`);
    say(`${"".padEnd(10)}${["count", "p50", "p95", "max"].map((head) => head.padStart(9)).join("")}   ms`);
    for (const [operation, all] of this.#latencies) {
      const sorted = all.toSorted((a, b) => a - b);
      const at = (part: number) =>
        sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * part))]!.toFixed(0);
      say(
        `${operation.padEnd(10)}${[String(all.length), at(0.5), at(0.95), at(1)].map((cell) => cell.padStart(9)).join("")}`,
      );
    }
    say("");
    for (const [index, now] of usage(this.stack).entries()) say(compare(this.#before[index]!, now));
    printCounts("faults", tally(this.#faults));
    printCounts("refused while things broke", this.#refused);
    printCounts("BROKEN PROMISES", this.#broken);
    const count = [...this.#broken.values()].reduce((sum, one) => sum + one, 0);
    say(
      `\nsoak: ${plural(this.#ended, "life", "lives")}, ${plural(this.#faults.length, "fault")}, ${plural(count, "broken promise")}`,
    );
    return count;
  }
}

/** The name of a gRPC error's code; undefined for any other error. */
function codeOf(error: unknown): string | undefined {
  const { code } = error as { code?: unknown };
  return typeof code === "number" ? codeName(code) : undefined;
}

const KILL = "kill the driver";
const FAULTS = [
  "StopSandbox: delay 500ms, 2 times",
  "CreateSandbox: delay 300ms, 2 times",
  "CreateSandbox: fail UNAVAILABLE on purpose, 2 times",
  "ValidateSandboxCreate: fail UNAVAILABLE on purpose, 2 times",
  "StopSandbox: fail INTERNAL on purpose, 2 times",
  "StartSandbox: fail UNAVAILABLE on purpose, 2 times",
  "DeleteSandbox: fail INTERNAL on purpose, 1 times",
  "StartSandbox: duplicate, 2 times",
  "DeleteSandbox: duplicate, 2 times",
  // It breaks all connections, too; a rule that drops them would not spare creates and deletes.
  KILL,
] as const;

function pause(ms: number, over: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    over.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
}

/** Numbers from 0 to 1, the same for the same seed (mulberry32). */
function generator(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4_294_967_296;
  };
}

/** What a process holds: megabytes of memory, and file descriptors where the system tells. */
interface Usage {
  who: string;
  pid: number;
  megabytes: number;
  descriptors: number | undefined;
}

function usage({ info }: RunningStack): Usage[] {
  return (["gateway", "driver", "keeper"] as const).map((who) => {
    const pid = info.pids[who];
    const folder = `/proc/${pid}`;
    const descriptors = existsSync(`${folder}/fd`) ? readdirSync(`${folder}/fd`).length : undefined;
    return { who, pid, megabytes: residentMegabytes(pid), descriptors };
  });
}

function compare(before: Usage, now: Usage): string {
  const restarted = before.pid === now.pid ? "" : " (it was restarted)";
  const memory = `${before.megabytes} → ${now.megabytes} MB`;
  return `${now.who.padEnd(10)}${memory.padEnd(20)}${before.descriptors ?? "?"} → ${now.descriptors ?? "?"} file descriptors${restarted}`;
}

function tally(words: string[]): Map<string, number> {
  const counts = new Map<string, number>();
  for (const word of words) counts.set(word, (counts.get(word) ?? 0) + 1);
  return counts;
}

function printCounts(title: string, counts: Map<string, number>): void {
  if (counts.size === 0) return;
  say(`\n${title}:`);
  for (const [what, count] of [...counts].toSorted(([, a], [, b]) => b - a))
    say(`${String(count).padStart(6)} × ${what}`);
}
