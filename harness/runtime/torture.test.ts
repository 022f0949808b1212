// SPDX-License-Identifier: Apache-2.0

/** Whichever verb is killed (SIGKILL), and whenever, nothing of it is left: no process, no folder, no half-made program. */
import { ROOT } from "../base/root.ts";
import { afterAll, expect, setDefaultTimeout, test } from "bun:test";
import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { eventually } from "../base/waiting.ts";
import { describeProcess, processTable } from "./processes.ts";

setDefaultTimeout(120_000);

const folder = mkdtempSync(join(tmpdir(), "to-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** Kills of each verb; the many that `bun run torture` does are those of keeper.test.ts. */
const KILLS = Number(process.env.OPENSHELL_E2E_VERB_KILLS ?? 1);
/** Most programs are up after half of that, and the shortest verb is over after all of it. In milliseconds. */
const LATEST_MS = 3_000;
const GONE_MS = 15_000;

/** A real gateway is one that is named: parity wants two. */
const gateway = join(folder, "openshell-gateway");
writeFileSync(gateway, `#!/bin/sh\nexec "${process.execPath}" "${ROOT}/fakes/gateway.ts" "$@"\n`, {
  mode: 0o755,
});

const VERBS: Record<string, string[]> = {
  test: ["test", "external-podman", "-t", "(SM|LC)-"],
  check: ["check", "--only", "D,F"],
  with: ["with", "--", "sh", "-c", "sleep 600"],
  up: ["up"],
  soak: ["soak", "--sandboxes", "50", "--parallel", "4", "--chaos"],
  mutants: ["mutants", "--only", "DC-7"],
  parity: ["parity", "-t", "GA-"],
  bench: ["bench"],
};

const kills = Object.keys(VERBS).flatMap((verb) =>
  Array.from({ length: KILLS }, (_, index) => ({ verb, kill: index + 1 })),
);

test.each(kills)("$verb, killed at a random moment ($kill), leaves nothing", async ({ verb }) => {
  const place = mkdtempSync(join(folder, "k-"));
  const runs = join(place, "runs");
  const [cwd, temporary] = [join(place, "cwd"), join(place, "tmp")];
  for (const each of [cwd, temporary]) mkdirSync(each);
  const env = {
    PATH: process.env.PATH!,
    HOME: process.env.HOME!,
    // By which all that it starts is found, whatever else it is told.
    TORTURED: place,
    TMPDIR: temporary,
    OPENSHELL_E2E_RUN_DIR: runs,
    OPENSHELL_E2E_REPORTS: join(place, "reports"),
    ...(verb === "parity" && { OPENSHELL_GATEWAY_BIN: gateway }),
  };
  const argv = [process.execPath, join(ROOT, "harness.ts"), ...VERBS[verb]!];
  const child = Bun.spawn(argv, { cwd, env, stdio: ["ignore", "ignore", "ignore"] });
  const at = Math.round(Math.random() * LATEST_MS);
  await Promise.race([Bun.sleep(at), child.exited]);
  // A verb that refuses to begin would leave nothing, too.
  expect(child.exitCode).not.toBe(2);
  child.kill("SIGKILL");
  await child.exited;
  const left = () => {
    const processes = processTable().filter(
      ({ environment, words }) =>
        environment.includes(`TORTURED=${place}`) ||
        [...environment, ...words].some((text) => text.includes(`${runs}/`)),
    );
    const files = [runs, cwd].flatMap((path) => names(path).map((name) => join(path, name)));
    const all = [...processes.map((each) => describeProcess({ ...each, isEngine: false })), ...files];
    if (all.length > 0) throw new Error(all.join("\n"));
  };
  await eventually(left, { what: `nothing left of ${verb}, killed after ${at} ms`, deadlineMs: GONE_MS });
});

/** What is in a folder; nothing if it was never made. */
function names(path: string): string[] {
  try {
    return readdirSync(path);
  } catch {
    return [];
  }
}
