// SPDX-License-Identifier: Apache-2.0

/** A child process and what it is given: its own environment, its own log file, and an owner that stops it. */
import { existsSync, closeSync, mkdirSync, openSync, statfsSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { eventually } from "../base/waiting.ts";
import { HarnessError } from "../base/errors.ts";
import { indent } from "../base/text.ts";
import { shorten, sizeWords, tailOf } from "../base/log.ts";
import { birthOf } from "./processes.ts";
import { RUN_MARK } from "./marks.ts";
import type { Run } from "./run.ts";
import { descendants, type Known, servingProcess, signalTo } from "./serving-process.ts";
import { whyNotStarted } from "../base/short-command.ts";
import { now, record } from "../report/record.ts";

/** A child process: its own environment, its own log file, and an owner that stops it. */
export class Child {
  exitCode: number | undefined;
  readonly pid: number;
  readonly exited: Promise<number>;
  readonly #process: Bun.Subprocess;
  /** Whether its end is what we asked for. */
  #told = false;
  #served: Known | undefined;

  private constructor(
    readonly name: string,
    readonly argv: string[],
    readonly log: string,
    process: Bun.Subprocess,
  ) {
    this.#process = process;
    this.pid = process.pid;
    this.exited = process.exited.then((code) => (this.exitCode = code));
    record({ kind: "process", process: { name, stack: stackOf(log), pid: this.pid, at: now() } });
    const watch = setInterval(() => this.#boundLog(), LOG_LOOK_MS);
    watch.unref();
    void this.exited.then(() => {
      clearInterval(watch);
      this.#boundLog();
    });
    void this.exited.then(() =>
      record({ kind: "ended", pid: this.pid, at: now(), ending: this.ending ?? "", told: this.#told }),
    );
  }

  /** Starts `argv` with exactly `env`; both outputs go to the file `log`. */
  static start(name: string, argv: string[], env: Record<string, string>, log: string): Child {
    const fd = openSync(log, "a", 0o600);
    try {
      return new Child(name, argv, log, Bun.spawn(argv, { env, stdin: "ignore", stdout: fd, stderr: fd }));
    } catch (error) {
      throw new HarnessError(
        `${name}: cannot be started: ${whyNotStarted(error)}\n  command: ${argv.join(" ")}`,
      );
    } finally {
      closeSync(fd);
    }
  }

  get alive(): boolean {
    return (
      this.exitCode === undefined && this.#process.exitCode === null && this.#process.signalCode === null
    );
  }

  /** A log that grows without end must not fill the disk, which is often memory. */
  #boundLog(): void {
    try {
      const bytes = shorten(this.log);
      if (bytes > 0) taken.set(this.log, (taken.get(this.log) ?? 0) + bytes);
    } catch {
      // A disk that is full, or a folder that is gone, is told of by whatever else happens there.
    }
  }

  /** The last `lines` lines of its log. */
  tail(lines = 20): string {
    return [...floods(this.log).map(floodWords), tailOf(this.log, lines)].filter(Boolean).join("\n");
  }

  /** Waits until `probe` succeeds; a process that ends first is noticed at once, with its own last words. */
  async ready<T>(probe: () => T | Promise<T>, what: string, deadlineMs: number): Promise<T> {
    try {
      const result = await eventually(probe, {
        what: `${this.name}: ${what}`,
        deadlineMs,
        failed: () => (this.alive ? undefined : `it ended with ${this.ending}`),
      });
      record({ kind: "ready", pid: this.pid, at: now() });
      this.#server();
      return result;
    } catch (error) {
      throw new HarnessError(`${(error as Error).message}\n${this.describe()}`);
    }
  }

  /** Its command line and the tail of its log, for an error. */
  describe(): string {
    const tail = this.tail();
    const empty = isFull(dirname(this.log)) ? "no space left on the disk of its log" : "its log is empty";
    return `  command: ${this.argv.join(" ")}\n${tail ? indent(tail, "  | ") : `  (${empty})`}`;
  }

  /** How it ended, such as "exit code 0" or "signal SIGKILL"; undefined while it runs. */
  get ending(): string | undefined {
    const { exitCode, signalCode } = this.#process;
    if (this.alive) return undefined;
    return signalCode ? `signal ${signalCode}` : `exit code ${exitCode}`;
  }

  /** The process that serves: its own, or one behind it, if it is a program that starts the server and stays in front. */
  get serving(): number {
    return this.#server()?.pid ?? this.pid;
  }

  /** Once it was seen it is remembered: a server that ends closes its socket first. */
  #server(): Known | undefined {
    if (!this.alive) return undefined;
    return (this.#served ??= servingProcess(this.pid));
  }

  /** Sends a signal to the process that serves. SIGKILL ends what is in front of it, too: nobody may be left to end it. */
  kill(signal: NodeJS.Signals): void {
    if (!this.alive) return;
    this.#told ||= signal !== "SIGSTOP" && signal !== "SIGCONT";
    const server = this.#server();
    const isBehind = server && server.pid !== this.pid && birthOf(server.pid) === server.birth;
    if (isBehind) signalTo(server, signal);
    if (!isBehind || signal === "SIGKILL") this.#process.kill(signal);
  }

  /** SIGTERM, then SIGKILL after `graceMs`. Resolves with how it ended, such as "exit code 0". */
  async stop(graceMs: number): Promise<string> {
    // One that never served has started no sandboxes: what it started belongs to it.
    const behind = this.alive && !this.#server() ? descendants(this.pid) : [];
    this.kill("SIGTERM");
    for (const each of behind) signalTo(each, "SIGTERM");
    const timer = setTimeout(() => {
      this.kill("SIGKILL");
      for (const each of behind) signalTo(each, "SIGKILL");
    }, graceMs);
    await this.exited;
    clearTimeout(timer);
    // Whatever was in front of it may have ended first, on its own.
    if (this.#served) signalTo(this.#served, "SIGKILL");
    return this.gone();
  }

  /** Waits until it has ended, and the process that serves has. Resolves with how, such as "exit code 0". */
  async gone(): Promise<string> {
    await this.exited;
    const server = this.#served;
    const look = () => {
      if (server && birthOf(server.pid) === server.birth) throw new Error("it lives");
    };
    await eventually(look, { what: `${this.name}: the end of process ${server?.pid}`, deadlineMs: GONE_MS });
    return this.ending!;
  }
}

/** How long a process may take to be gone once it was killed, or what stood in front of it ended, in milliseconds. */
const GONE_MS = 5_000;

/** A program that wrote more to its log than is kept. */
export interface Flood {
  name: string;
  /** 0 for a program that all stacks share. */
  stack: number;
  /** How much was taken out of its log. */
  bytes: number;
}

/** What was taken out of logs that were too long, in bytes. */
const taken = new Map<string, number>();

/** The programs of this process that wrote more to their logs than is kept, or the one of a log. */
export const floods = (log?: string): Flood[] =>
  [...taken]
    .filter(([file]) => log === undefined || file === log)
    .map(([file, bytes]) => ({ name: basename(file, ".log"), stack: stackOf(file), bytes }));

/** "driver/1 floods its log: 1.2 GB of it were not kept". */
export const floodWords = ({ name, stack, bytes }: Flood): string =>
  `${stack ? `${name}/${stack}` : name} floods its log: ${sizeWords(bytes)} of it were not kept`;

/** How often it is looked how long a log is, in milliseconds. */
const LOG_LOOK_MS = 100;

/** A log lies in the folder of its stack, which is a number; of a program that all stacks share, in the run's. */
const stackOf = (log: string): number => Number(/^\d{1,3}$/.exec(basename(dirname(log)))?.[0] ?? 0);

/** What a disk has left that is full for all that is larger than a line, in bytes. */
const REST = 65_536;

/** Whether a user's file in that folder could hardly grow. */
function isFull(folder: string): boolean {
  try {
    const { bavail, bsize } = statfsSync(folder);
    return bavail * bsize < REST;
  } catch {
    return false;
  }
}

/** An environment made from nothing: the gateway and the driver share variable names, and both look into HOME. */
export function cleanEnvironment(run: Run, home: string): Record<string, string> {
  // Not with the folders above it: a run that is gone by now must not come back.
  if (!existsSync(home)) mkdirSync(home, { mode: 0o700 });
  return {
    PATH: process.env.PATH ?? "/usr/local/bin:/usr/bin:/bin",
    LANG: "C.UTF-8",
    NO_COLOR: "1",
    HOME: home,
    TMPDIR: home,
    XDG_CONFIG_HOME: join(home, "config"),
    XDG_STATE_HOME: join(home, "state"),
    XDG_DATA_HOME: join(home, "data"),
    XDG_CACHE_HOME: join(home, "cache"),
    XDG_RUNTIME_DIR: home,
    OPENSHELL_TELEMETRY_ENABLED: "false",
    [RUN_MARK]: run.id,
  };
}
