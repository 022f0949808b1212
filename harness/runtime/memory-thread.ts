// SPDX-License-Identifier: Apache-2.0

/** The thread that watches a process: see memory.ts. It imports next to nothing, since every process of ours has one. */
import { readdirSync, readFileSync, readlinkSync, writeFileSync, writeSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { workerData } from "node:worker_threads";
import type { Orders } from "./memory.ts";

const { name, bound, fakeBound, root, caches, lastWords, run, turns, patienceMs } = workerData as Orders;

/** How often it looks, in milliseconds. The fastest runaway that was measured allocates 2 GiB in that time. */
const LOOK_MS = 500;
const MIB = 2 ** 20;
const ERROR = 2;

const sources = join(root, "fakes", "");
const hasProc = process.platform === "linux";

/** How often the event loop had turned when it was last seen to, and how often it has been looked at since. */
let seen = 0;
let looks = 0;

setInterval(look, LOOK_MS);

function look(): void {
  const own = process.memoryUsage.rss() / MIB;
  if (own > bound) return end(exceeded(`${name} (process ${process.pid})`, own, bound));
  for (const pid of hasProc ? readdirSync("/proc") : []) {
    const fake = /^\d/.test(pid) && fakeOf(pid);
    const used = fake ? residentMemory(pid) : 0;
    if (!fake || used <= fakeBound || !isOurs(pid)) continue;
    attempt(() => process.kill(Number(pid), "SIGKILL"));
    return end(exceeded(`the fake ${fake} (process ${pid})`, used, fakeBound));
  }
  if (!turns) return;
  const turned = Atomics.load(turns, 0);
  looks = turned === seen ? looks + 1 : 0;
  seen = turned;
  // Looks are counted, not time: a machine that was suspended says nothing of the process.
  if (looks * LOOK_MS > patienceMs)
    end(`${name} (process ${process.pid}) did nothing for ${patienceMs / 1_000} s: its event loop is stuck`);
}

const exceeded = (who: string, used: number, most: number): string =>
  `${who} used ${Math.round(used)} MiB of memory, more than its bound of ${most} MiB`;

/** Says why, where the user sees it, and ends the process: its keeper or its guard then removes the rest. */
function end(what: string): void {
  const why = `${what}. It was ended, and the run with it. If nothing flooded it, this is a defect of the harness`;
  // Whatever cannot be written to, the process must end.
  if (run) attempt(() => writeFileSync(join(run.folder, lastWords), why));
  attempt(() => writeSync(2, `openshell-e2e: ${why}\n`));
  exit(ERROR);
}

/** Ends the whole process. In a thread, `process.exit` ends no more than the thread. */
function exit(code: number): void {
  try {
    const { dlopen } = require("bun:ffi") as typeof import("bun:ffi");
    const libc = process.platform === "darwin" ? "libSystem.B.dylib" : "libc.so.6";
    const { symbols } = dlopen(libc, { _exit: { args: ["int"], returns: "void" } });
    symbols["_exit"](code);
  } catch {
    // Another libc. The process must end all the same, if with another code.
  }
  process.kill(process.pid, "SIGKILL");
}

// Other processes. Any of them may end between two looks, and those of other users cannot be read: they are none of ours.

function attempt<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch {
    return undefined;
  }
}

const read = (pid: string, file: string): string =>
  attempt(() => readFileSync(`/proc/${pid}/${file}`, "latin1")) ?? "";
const programOf = (pid: string): string => attempt(() => readlinkSync(`/proc/${pid}/exe`)) ?? "";

/** In MiB. */
const residentMemory = (pid: string): number =>
  Number(/VmRSS:\s+(\d+)/.exec(read(pid, "status"))?.[1] ?? 0) / 1_024;

/** Which fake a process is, by the program that it runs; empty if it is none. */
function fakeOf(pid: string): string {
  const program = programOf(pid);
  if (caches.includes(dirname(program))) return basename(program).split("-")[0]!;
  if (run?.inContainers && program === "/openshell-sandbox") return "supervisor";
  if (program !== process.execPath) return "";
  const [, ...words] = read(pid, "cmdline").split("\0");
  const script = words.find((word) => !word.startsWith("-")) ?? "";
  return script.startsWith(sources) ? basename(script, ".ts") : "";
}

/** Whether a fake is this process' to end: it is below it, with no other process of ours between, or carries its run's mark. */
function isOurs(pid: string): boolean {
  for (let at = pid; Number(at) > 1;) {
    at = read(at, "stat").split(") ").at(-1)!.split(" ")[1] ?? "";
    if (at === String(process.pid)) return true;
    if (programOf(at) === process.execPath && !fakeOf(at)) break;
  }
  if (!run) return false;
  const environment = read(pid, "environ").split("\0");
  const sandboxes = (attempt(() => readFileSync(join(run.folder, "sandboxes"), "latin1")) ?? "").split("\n");
  return environment.some(
    (entry) =>
      entry === `OPENSHELL_E2E_RUN=${basename(run.folder)}` ||
      entry.startsWith(`OPENSHELL_FAKE_ROOT=${run.folder}/`) ||
      (entry.startsWith("OPENSHELL_SANDBOX_ID=") && sandboxes.includes(entry.split("=")[1]!)),
  );
}
