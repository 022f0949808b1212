// SPDX-License-Identifier: Apache-2.0

/** What is alive answers: keepers that are stopped, and files that are none. */
import { afterAll, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ROOT } from "../base/root.ts";
import { readSettings } from "../base/settings.ts";
import { eventually } from "../base/waiting.ts";
import { SILENCE, startKeeper } from "./connection.ts";
import { processesOf } from "./processes.ts";
import { Run } from "./run.ts";

setDefaultTimeout(60_000);

const folder = mkdtempSync(join(tmpdir(), "si-"));
const env = {
  ...process.env,
  OPENSHELL_E2E_RUN_DIR: join(folder, "runs"),
  OPENSHELL_E2E_REPORTS: join(folder, "reports"),
  OPENSHELL_E2E_FAKE: "gateway,driver,engine,supervisor",
  OPENSHELL_E2E_ATTACH: "1",
};
const { settings } = readSettings([], env);
afterAll(() => rmSync(folder, { recursive: true, force: true }));

async function harness(...args: string[]) {
  const began = performance.now();
  const child = Bun.spawn([process.execPath, "harness.ts", ...args], {
    cwd: ROOT,
    env,
    stdout: "pipe",
    stderr: "pipe",
    timeout: 30_000,
    killSignal: "SIGKILL",
  });
  const [out, err, code] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
  return { code, said: out + err, ms: performance.now() - began };
}

test("a keeper that is stopped is told of, holds nobody up, is not swept, and goes on when it may", async () => {
  const run = Run.create(settings);
  const keeper = await startKeeper(run, settings);
  await keeper.call("hello");
  const pid = Number(readFileSync(join(run.folder, "keeper.pid"), "utf8"));
  const words = `its keeper (process ${pid}) does not answer, it is stopped: \`kill -CONT ${pid}\``;
  writeFileSync(join(run.folder, "up"), "");
  process.kill(pid, "SIGSTOP");
  // The keeper of all tests is waited for by the same numbers.
  const usual = { ...SILENCE };
  try {
    Object.assign(SILENCE, { signs: 2, everyMs: 100 });
    const asked = keeper.call("hello").catch((error: Error) => error.message);
    expect(await asked).toContain(`run ${run.id}: ${words}`);
    const [swept, doctor, attached] = await Promise.all([
      harness("sweep"),
      harness("doctor"),
      harness("with", "--", "true"),
    ]);
    expect(swept).toMatchObject({ code: 2, said: expect.stringContaining(words) });
    expect(doctor.said).toContain(words);
    expect(attached).toMatchObject({ code: 0, said: expect.stringContaining("stays aside: its keeper") });
    for (const { ms } of [swept, doctor, attached]) expect(ms).toBeLessThan(20_000);
    expect(existsSync(run.folder)).toBe(true);
  } finally {
    Object.assign(SILENCE, usual);
    process.kill(pid, "SIGCONT");
  }
  // Its only connection was broken meanwhile.
  const gone = () => expect([existsSync(run.folder), processesOf(run)]).toEqual([false, []]);
  await eventually(gone, { what: "the run to end", deadlineMs: 15_000 });
});

test("whoever asks a starting keeper for a sign of life, and hangs up, does not end its run", async () => {
  const run = Run.create(settings);
  const starting = startKeeper(run, settings);
  await eventually(async () => expect(await run.state()).toBe("alive"), { what: "the keeper to start" });
  for (let i = 0; i < 20; i++) expect(await run.state()).toBe("alive");
  const keeper = await starting;
  expect(await keeper.call("hello")).toMatchObject({ parts: expect.anything() });
  await keeper.call("close");
  keeper.close();
});

test.each(["keeper.pid", "keeper.log", "records-test-1.jsonl", "sandboxes", "engine.json"])(
  "a FIFO in the place of a dead run's %s holds up neither sweep nor doctor",
  async (name) => {
    const run = join(folder, "runs", "0123abcd");
    mkdirSync(run, { recursive: true, mode: 0o700 });
    // Nobody has that pid.
    writeFileSync(join(run, "keeper.pid"), "4194305");
    rmSync(join(run, name), { force: true });
    Bun.spawnSync(["mkfifo", join(run, name)]);
    if (name === "keeper.pid") Bun.spawnSync(["touch", "-d", "1 hour ago", join(run, name), run]);
    expect(await harness("doctor")).toMatchObject({ said: expect.stringContaining("run 0123abcd is dead") });
    const { code, ms } = await harness("sweep");
    // Of an engine that nobody can name, that is said.
    expect({ code, left: existsSync(run) }).toEqual({ code: name === "engine.json" ? 2 : 0, left: false });
    expect(ms).toBeLessThan(10_000);
  },
);
