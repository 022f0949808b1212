// SPDX-License-Identifier: Apache-2.0

/** What surrounds a run: a CI system that hunts for processes, files and settings that were not meant for us. */
import { ROOT } from "../base/root.ts";
import { afterAll, expect, setDefaultTimeout, test } from "bun:test";
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { eventually } from "../base/waiting.ts";
import { readSettings } from "../base/settings.ts";
import { kill, processesOf, processTable } from "./processes.ts";
import { Run } from "./run.ts";

setDefaultTimeout(60_000);

const folder = mkdtempSync(join(tmpdir(), "su-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const environment = (runs: string): Record<string, string> => ({
  PATH: process.env.PATH!,
  HOME: process.env.HOME!,
  OPENSHELL_E2E_RUN_DIR: join(folder, runs),
  OPENSHELL_E2E_REPORTS: join(folder, `${runs}-reports`),
});

async function nothingLeft(runs: string): Promise<void> {
  const { settings } = readSettings([], environment(runs));
  const look = () => {
    const left = Run.all(settings).map((run) => [
      run.folder,
      ...processesOf(run).map(({ command }) => command),
    ]);
    if (left.length > 0) throw new Error(left.join("\n"));
  };
  await eventually(look, { what: "nothing left of the run", deadlineMs: 10_000 });
}

test.each(["RUNNER_TRACKING_ID", "VSTS_PROCESS_LOOKUP_ID", "JENKINS_NODE_COOKIE"])(
  "a CI system that kills all that inherited %s leaves nothing of a run behind",
  async (variable) => {
    const mark = `${variable}=job-${crypto.randomUUID()}`;
    const env = { ...environment("hunted"), [variable]: mark.slice(variable.length + 1) };
    const child = Bun.spawn(
      [process.execPath, "harness.ts", "with", "--", "sh", "-c", "echo up; exec sleep 60"],
      {
        cwd: ROOT,
        env,
        stdout: "pipe",
        stderr: "ignore",
      },
    );
    await child.stdout.getReader().read();
    const hunted = processTable().filter((each) => each.environment.includes(mark));
    expect(hunted.length).toBeGreaterThan(1);
    for (const each of hunted) kill(each);
    await child.exited;
    await nothingLeft("hunted");
  },
);

/** A checkout of its own, with the installed packages of this one. */
function checkout(name: string): string {
  const copy = join(folder, name);
  const left = ["node_modules", "reports", ".git"].map((each) => join(ROOT, each));
  cpSync(ROOT, copy, { recursive: true, filter: (path) => !left.includes(path) });
  symlinkSync(join(ROOT, "node_modules"), join(copy, "node_modules"));
  return copy;
}

/** Runs bun in a folder to its end. */
async function bun(args: string[], cwd: string, env: Record<string, string>) {
  const child = Bun.spawn([process.execPath, ...args], { cwd, env, stdout: "pipe", stderr: "pipe" });
  const text = await Promise.all([child.stdout.text(), child.stderr.text()]);
  return { code: await child.exited, output: text.join("") };
}

test("what a run is made of does not change between its processes by a file that bun reads for some of them", async () => {
  const copy = checkout("dotenv");
  const env = environment("dotenv-runs");
  // Either would stop the process that believes it: no gateway is real here.
  writeFileSync(join(copy, ".env.test"), "OPENSHELL_E2E_REQUIRE=gateway\n");
  const whole = await bun(["harness.ts", "test", "external-podman", "-t", "SM-02"], copy, env);
  expect(whole, whole.output).toMatchObject({ code: 0 });
  rmSync(join(copy, ".env.test"));
  writeFileSync(join(copy, ".env.local"), "OPENSHELL_E2E_REQUIRE=gateway\n");
  const single = await bun(["test", "scenarios/external-podman/smoke.test.ts", "-t", "SM-02"], copy, env);
  expect(single, single.output).toMatchObject({ code: 0 });
});

test("from another folder, where bun reads no bunfig.toml of ours, it is said what is not installed", async () => {
  const copy = checkout("uncompiled");
  rmSync(join(copy, "proto", "v0.0", "types"), { recursive: true });
  rmSync(join(copy, "proto", "v0.0", "codecs.ts"));
  const { code, output } = await bun(
    [join(copy, "harness.ts"), "check"],
    folder,
    environment("uncompiled-runs"),
  );
  expect(output).toMatch(/^openshell-e2e: [^\n]+: run `bun [^\n]+` in \/[^\n]+\n$/);
  expect(code).toBe(2);
});

test("bun test in a folder where it does not load what ends a run says so, and what to do", async () => {
  const env = environment("elsewhere");
  const args = ["test", "smoke.test.ts", "-t", "SM-02"];
  const elsewhere = join(ROOT, "scenarios", "external-podman");
  const refused = await bun(args, elsewhere, env);
  expect(refused.output).toMatch(
    /^openshell-e2e: bun test was started in another folder, [^\n]+ --preload \S+$/m,
  );
  expect(refused.code).toBe(2);
  const preload = /--preload \S+$/m.exec(refused.output)![0].split(" ");
  const run = await bun([...args, ...preload], elsewhere, env);
  expect(run, run.output).toMatchObject({ code: 0 });
  const results = JSON.parse(readFileSync(join(env.OPENSHELL_E2E_REPORTS!, "results.json"), "utf8"));
  expect(results).toMatchObject({ run: { cutOff: false }, counts: { pass: 1 } });
});

/** Starts the harness as `nohup` does, and ends its terminal once it has said that. Bun would start it with the signal reset. */
async function underNohup(args: string[], until: string) {
  const argv = ["sh", "-c", `trap "" HUP; exec "$@" 2>&1`, "sh", process.execPath, "harness.ts", ...args];
  const child = Bun.spawn(argv, { cwd: ROOT, env: environment("nohup"), detached: true, stdout: "pipe" });
  const output = { said: "" };
  const told = Promise.withResolvers<void>();
  const done = (async () => {
    for await (const piece of child.stdout.pipeThrough(new TextDecoderStream()))
      if ((output.said += piece).includes(until)) told.resolve();
    told.resolve();
  })();
  await told.promise;
  // As from a terminal: to all processes of the group.
  process.kill(-child.pid, "SIGHUP");
  return { child, output, done };
}

test.each([
  ["with -- sh -c", "echo begun; sleep 0.5; echo done", "begun"],
  ["test external-podman -t", "SM-0|LC-01", "(pass)"],
  ["soak --sandboxes", "8", "soak"],
  ["check --only", "B,F", "pass "],
])("under nohup the end of the terminal ends nothing: %s", async (command, last, until) => {
  const { child, output, done } = await underNohup([...command.split(" "), last], until);
  await done;
  expect(await child.exited, output.said).toBe(0);
  await nothingLeft("nohup");
});

test("under nohup `up` stays when its terminal is gone, and ends by SIGTERM", async () => {
  const { child } = await underNohup(["up"], "Ctrl-C");
  const attached = await bun(["harness.ts", "with", "--", "true"], ROOT, environment("nohup"));
  expect(attached.output).toContain("attached to run");
  child.kill("SIGTERM");
  expect(await child.exited).toBe(0);
  await nothingLeft("nohup");
});

const canUnshare = Boolean(Bun.which("unshare")) && Bun.spawnSync(["unshare", "-rn", "true"]).success;
const alone = "where the loopback interface is down that is said at once, and no program is blamed";
test.skipIf(!canUnshare)(
  canUnshare ? alone : `${alone} (skipped: unshare -rn is not to be had)`,
  async () => {
    const argv = ["unshare", "-rn", process.execPath, "harness.ts", "with", "--", "true"];
    const env = environment("loopback");
    const child = Bun.spawn(argv, { cwd: ROOT, env, stdout: "ignore", stderr: "pipe", timeout: 15_000 });
    expect(await child.stderr.text()).toMatch(
      /^openshell-e2e: 127\.0\.0\.1 cannot be reached [^\n]+\n[^\n]+`ip link set lo up`[^\n]+\n$/m,
    );
    expect(await child.exited).toBe(2);
    await nothingLeft("loopback");
  },
);

test("a Podman whose user works with another one's serves the run itself all the same", async () => {
  const programs = join(folder, "programs");
  mkdirSync(programs);
  // Podman with CONTAINER_HOST in its environment is a client, unless it is told not to be one.
  const podman = `#!/bin/sh
    [ "$1" = --version ] && exec echo "podman version 5.4.2"
    case "$CONTAINER_HOST $*" in ?*" --remote=false system service"*) exec echo "it serves" ;; esac
    echo "Error: cannot use command podman system service with the remote podman client"`;
  writeFileSync(join(programs, "podman"), podman, { mode: 0o755 });
  const env = {
    ...environment("remote"),
    PATH: `${programs}:${process.env.PATH}`,
    CONTAINER_HOST: "ssh://core@localhost/run/podman/podman.sock",
    OPENSHELL_SANDBOX_IMAGE: "localhost/sandbox:1",
  };
  // It ends at once, and its last words are told.
  expect((await bun(["harness.ts", "with", "--", "true"], ROOT, env)).output).toContain("| it serves");
});
