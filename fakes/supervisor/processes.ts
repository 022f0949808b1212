// SPDX-License-Identifier: Apache-2.0

/**
 * The user's processes: started on pipes or a terminal, and ended with all that came of them.
 */
import { dlopen } from "bun:ffi";
import { spawn } from "node:child_process";
import { chownSync, mkdirSync, readdirSync, readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { rooted, type Settings } from "./settings.ts";
import type { User } from "./user.ts";

/** How a process ended. */
export interface Ended {
  code: number | null;
  signal: NodeJS.Signals | null;
}

/** A program to start. */
export interface Launch {
  argv: string[];
  env: Record<string, string>;
}

/** Starts the user's processes, each in a session of its own, and ends whatever came of them. */
export class Processes {
  readonly #own = new Set<number>();
  readonly #terminals = new Set<Bun.Terminal>();
  readonly #libc = openLibc();
  readonly #placement: { cwd: string; uid?: number; gid?: number };

  constructor(
    settings: Settings,
    readonly user: User,
  ) {
    const cwd = rooted(settings, settings.workdir);
    mkdirSync(cwd, { recursive: true });
    if (user.uid !== undefined && user.gid !== undefined) chownSync(cwd, user.uid, user.gid);
    this.#placement = { cwd, uid: user.uid, gid: user.gid };
    // Orphans of this process's children become its own children, so that none can hide from `endAll`.
    this.#libc?.symbols.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    setInterval(() => this.#reap(), 1_000).unref();
  }

  /** Starts a program on pipes. @throws when it cannot be started. */
  async piped({ argv, env }: Launch) {
    const child = spawn(argv[0]!, argv.slice(1), { ...this.#placement, env, detached: true });
    const ended = new Promise<Ended>((resolve) =>
      child.once("exit", (code, signal) => resolve({ code, signal })),
    );
    await new Promise<void>((resolve, reject) => child.once("spawn", () => resolve()).once("error", reject));
    // A reader that is gone shows in the process's own EPIPE.
    child.stdin.on("error", () => {});
    this.#own.add(child.pid!);
    void ended.then(() => this.#own.delete(child.pid!));
    return { pid: child.pid!, stdin: child.stdin, stdout: child.stdout, stderr: child.stderr, ended };
  }

  /** Starts a program on a terminal. `drained` resolves when nobody holds the terminal any more. @throws as `piped`. */
  onTerminal(
    { argv, env }: Launch,
    size: { cols: number; rows: number },
    output: (data: Uint8Array) => void,
  ) {
    const drained = Promise.withResolvers<void>();
    const child = Bun.spawn(argv, {
      ...this.#placement,
      env,
      terminal: {
        ...size,
        name: env.TERM,
        data: (_terminal, data) => output(data),
        exit: () => drained.resolve(),
      },
    });
    const terminal = child.terminal!;
    this.#own.add(child.pid);
    this.#terminals.add(terminal);
    const ended = child.exited.then((): Ended => {
      this.#own.delete(child.pid);
      return {
        code: child.signalCode ? null : child.exitCode,
        signal: child.signalCode as NodeJS.Signals | null,
      };
    });
    void drained.promise.then(() => {
      this.#terminals.delete(terminal);
      terminal.close();
    });
    return { pid: child.pid, terminal, ended, drained: drained.promise };
  }

  /** Ends every process below this one: SIGTERM and hang-up, after `grace` milliseconds SIGKILL. */
  async endAll(grace: number): Promise<void> {
    this.#signal(descendants(), "SIGTERM");
    // An interactive shell ignores SIGTERM, but not the loss of its terminal.
    for (const terminal of this.#terminals) terminal.close();
    const deadline = performance.now() + grace;
    while (performance.now() < deadline && descendants().length > 0) await sleep(5);
    for (
      let left = descendants();
      left.length > 0 && performance.now() < deadline + 1_000;
      left = descendants()
    ) {
      this.#signal(left, "SIGKILL");
      await sleep(5);
    }
  }

  #signal(pids: number[], signal: "SIGTERM" | "SIGKILL"): void {
    const refused = pids.filter((pid) => {
      try {
        process.kill(pid, signal);
      } catch (error) {
        return (error as NodeJS.ErrnoException).code === "EPERM";
      }
      return false;
    });
    // Podman's driver takes CAP_KILL away: then only the user itself may signal its processes.
    if (refused.length > 0) {
      const { uid, gid } = this.user;
      Bun.spawnSync(["/bin/sh", "-c", `kill -s ${signal.slice(3)} ${refused.join(" ")}`], {
        uid,
        gid,
        stderr: "ignore",
      });
    }
  }

  /** Collects dead processes that were not started here: a container's first process inherits orphans. */
  #reap(): void {
    if (!this.#libc) return;
    const { waitid, waitpid } = this.#libc.symbols;
    const siginfo = new Int32Array(32);
    for (;;) {
      siginfo.fill(0);
      // Looks at one dead child and leaves it there: those that were started here are somebody else's to collect.
      waitid(P_ALL, 0, siginfo, WEXITED | WNOHANG | WNOWAIT);
      const pid = siginfo[SI_PID]!;
      if (pid === 0 || this.#own.has(pid)) return;
      waitpid(pid, null, WNOHANG);
    }
  }
}

const PR_SET_CHILD_SUBREAPER = 36;
// waitid(2), and where the pid stands among the words of a siginfo_t on 64-bit systems.
const [P_ALL, WNOHANG, WEXITED, WNOWAIT, SI_PID] = [0, 1, 4, 0x0100_0000, 4];

/** The three calls that neither Bun nor Node has. Without libc orphans stay uncollected, no more. */
function openLibc() {
  for (const name of ["libc.so.6", "libc.so"]) {
    try {
      return dlopen(name, {
        prctl: { args: ["i32", "u64", "u64", "u64", "u64"], returns: "i32" },
        waitid: { args: ["i32", "i32", "ptr", "i32"], returns: "i32" },
        waitpid: { args: ["i32", "ptr", "i32"], returns: "i32" },
      });
    } catch {
      continue;
    }
  }
  return undefined;
}

function processTable(): { pid: number; parent: number; state: string }[] {
  return readdirSync("/proc").flatMap((entry) => {
    if (!/^\d+$/.test(entry)) return [];
    try {
      // pid (name) state ppid ...; the name may hold anything, so what follows is counted from its last bracket.
      const stat = readFileSync(`/proc/${entry}/stat`, "latin1");
      const [state = "", parent = ""] = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
      return [{ pid: Number(entry), parent: Number(parent), state }];
    } catch {
      return []; // It ended meanwhile.
    }
  });
}

/** Every live process below this one. */
function descendants(): number[] {
  const table = processTable();
  const below = new Set([process.pid]);
  for (let before = 0; before < below.size;) {
    before = below.size;
    for (const { pid, parent } of table) if (below.has(parent)) below.add(pid);
  }
  return table
    .filter(({ pid, state }) => pid !== process.pid && below.has(pid) && state !== "Z")
    .map(({ pid }) => pid);
}
