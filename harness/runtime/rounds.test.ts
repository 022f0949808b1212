// SPDX-License-Identifier: Apache-2.0

/**
 * Runs side by side in one checkout: every one passes, none hangs or runs away, nothing is left. Prints how much memory
 * each kind of process took. OPENSHELL_E2E_ROUNDS asks for them, some 6 s each; `bun run torture` does ten.
 */
import { afterAll, expect, test } from "bun:test";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { basename, join } from "node:path";
import { tailOf } from "../base/log.ts";
import { ROOT } from "../base/root.ts";
import { eventually } from "../base/waiting.ts";
import { BOUNDS } from "./memory.ts";
import { describeProcess, kill, processTable } from "./processes.ts";
import { usualPlace } from "./run.ts";

const ROUNDS = Number(process.env.OPENSHELL_E2E_ROUNDS ?? 0);
const AT_ONCE = 5;
/** Of all that start a gateway and a driver the quickest, and one with a sandbox. */
const CHOSEN = "(CF-0|SM-01)";
/** In milliseconds, as are all others. A run takes a sixth of that on two CPUs which others use, too. */
const LIMIT_MS = 90_000;
const LOOK_MS = 250;
const GONE_MS = 15_000;

const folder = mkdtempSync(join(usualPlace(), "ro-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

type Listed = ReturnType<typeof processTable>[number];

/** All that the runs have started: every process has a run's folder in its environment or in its arguments. */
const ours = (): Listed[] =>
  processTable().filter(({ environment, words }) =>
    [...environment, ...words].some((text) => text.includes(`${folder}/`)),
  );

const FAKES = ["gateway", "driver", "engine", "supervisor"];

/** What a process is; undefined for shells and what else takes no memory worth a bound. */
function kindOf({ words }: Listed): string | undefined {
  const [program = "", ...args] = words;
  const fake = FAKES.find((name) => basename(program).startsWith(`${name}-`));
  if (fake) return fake;
  if (!/^bun(\.exe)?$/.test(basename(program))) return undefined;
  const script = args.findIndex((word) => basename(word) === "harness.ts");
  if (script < 0) return args.includes("test") ? "test process" : undefined;
  return { keep: "keeper", test: "command" }[args[script + 1] ?? ""];
}

/** The most memory that each kind of process had resident, in MiB, and how many of them were seen. */
const peaks = new Map<string, { mib: number; pids: Set<string> }>();

function look(): void {
  for (const each of ours()) {
    const kind = kindOf(each);
    if (!kind) continue;
    const status = existsSync(`/proc/${each.pid}/status`) ? statusOf(each.pid) : "";
    // The kernel's own peak: what came and went between two looks counts, too.
    const mib = Math.round(Number(/VmHWM:\s+(\d+)/.exec(status)?.[1] ?? 0) / 1_024);
    const peak = peaks.get(kind) ?? { mib: 0, pids: new Set() };
    peaks.set(kind, { mib: Math.max(peak.mib, mib), pids: peak.pids.add(`${each.pid} ${each.birth}`) });
  }
}

function statusOf(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/status`, "utf8");
  } catch {
    // Gone meanwhile.
    return "";
  }
}

interface Ended {
  /** "hung" if it had to be killed. */
  code: number | "hung";
  seconds: number;
  log: string;
}

async function runOnce(name: string): Promise<Ended> {
  const place = join(folder, name);
  mkdirSync(place);
  const log = join(place, "log");
  const began = performance.now();
  const argv = ["run", "e2e", "--", "-t", CHOSEN, "--reports", join(place, "reports")];
  const child = Bun.spawn([process.execPath, ...argv], {
    cwd: ROOT,
    env: {
      PATH: process.env.PATH!,
      HOME: process.env.HOME!,
      OPENSHELL_E2E_RUN_DIR: join(place, "runs"),
      OPENSHELL_E2E_FAKE: FAKES.join(","),
    },
    stdin: "ignore",
    stdout: Bun.file(log),
    stderr: Bun.file(log),
  });
  let hung = false;
  const limit = setTimeout(() => {
    hung = true;
    const its = ({ environment, words }: Listed) =>
      [...environment, ...words].some((text) => text.includes(`${place}/`));
    processTable().filter(its).forEach(kill);
  }, LIMIT_MS);
  const code = await child.exited;
  clearTimeout(limit);
  return { code: hung ? "hung" : code, seconds: (performance.now() - began) / 1_000, log };
}

/** Processes and runs' folders that are there. */
const left = (): string[] => [
  ...ours().map(describeProcess),
  ...readdirSync(folder).flatMap((name) => {
    const runs = join(folder, name, "runs");
    return existsSync(runs) ? readdirSync(runs).map((id) => join(runs, id)) : [];
  }),
];

const all: Ended[] = [];
const leftovers: string[] = [];

function table(): string {
  const count = (is: (run: Ended) => boolean) => all.filter(is).length;
  const codes = [...new Set(all.map(({ code }) => code))];
  return [
    `runs          ${all.length}, ${AT_ONCE} at a time`,
    `exit codes    ${codes.map((code) => `${code}: ${count((run) => run.code === code)}`).join(", ")}`,
    `longest       ${Math.max(...all.map(({ seconds }) => seconds)).toFixed(1)} s`,
    `left          ${leftovers.length === 0 ? "nothing" : leftovers.join("\n              ")}`,
    ...[...peaks].map(([kind, { mib, pids }]) => `${kind.padEnd(14)}${mib} MiB at most, of ${pids.size}`),
  ].join("\n");
}

test.skipIf(ROUNDS === 0)(
  `${AT_ONCE} runs at once in one checkout pass, take no more memory than they may, and leave nothing${ROUNDS === 0 ? " (skipped: OPENSHELL_E2E_ROUNDS is not set)" : ""}`,
  async () => {
    const looking = setInterval(look, LOOK_MS);
    try {
      for (let round = 1; round <= ROUNDS; round++) {
        const names = Array.from({ length: AT_ONCE }, (_, index) => `${round}.${index + 1}`);
        const ended = await Promise.all(names.map(runOnce));
        all.push(...ended);
        const nothing = () => {
          const [first] = left();
          if (first) throw new Error(first);
        };
        const what = `round ${round}: nothing left`;
        await eventually(nothing, { what, deadlineMs: GONE_MS }).catch(() => leftovers.push(...left()));
        for (const { code, seconds, log } of ended.filter((run) => run.code !== 0))
          console.log(`round ${round}: ${code} after ${seconds.toFixed(1)} s\n${tailOf(log, 30)}`);
        for (const name of names) rmSync(join(folder, name), { recursive: true, force: true });
      }
    } finally {
      clearInterval(looking);
      console.log(table());
    }
    expect(all.filter(({ code }) => code !== 0).map(({ code }) => code)).toEqual([]);
    expect(leftovers).toEqual([]);
    const bound = (kind: string) =>
      FAKES.includes(kind) ? BOUNDS.fake : BOUNDS[kind as keyof typeof BOUNDS];
    for (const [kind, { mib }] of peaks) expect([kind, mib <= bound(kind)]).toEqual([kind, true]);
    if (process.platform === "linux")
      expect([...peaks.keys()].toSorted()).toEqual(
        [...FAKES, "keeper", "command", "test process"].toSorted(),
      );
  },
  // A hung run takes its whole limit, and there may be one in each round.
  Math.max(1, ROUNDS) * (LIMIT_MS + GONE_MS + 10_000),
);
