// SPDX-License-Identifier: Apache-2.0

/** The harness under attack: no room, no descriptors, folders of others, and an engine full of other people's things. */
import { ROOT } from "../base/root.ts";
import { afterAll, expect, setDefaultTimeout, test } from "bun:test";
import {
  chmodSync,
  chownSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir, userInfo } from "node:os";
import { join } from "node:path";
import { startEngine, tarOf } from "../../fakes/engine/lab.ts";
import { eventually } from "../base/waiting.ts";
import { readSettings } from "../base/settings.ts";
import { withKeeper } from "./connection.ts";
import { commandProcesses, kill, processesOf, processTable } from "./processes.ts";
import { COMMAND_MARK } from "./marks.ts";
import { Run } from "./run.ts";
import { Engine } from "./engine.ts";

setDefaultTimeout(60_000);

const folder = mkdtempSync(join(tmpdir(), "at-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const isRoot = userInfo().uid === 0;

function environment(runs: string): Record<string, string> {
  return {
    PATH: process.env.PATH!,
    HOME: process.env.HOME!,
    OPENSHELL_E2E_RUN_DIR: runs,
    OPENSHELL_E2E_REPORTS: join(folder, "reports"),
  };
}

/** Runs `bun harness.ts …` to its end. */
async function harness(args: string[], env: Record<string, string>, wrap: string[] = []) {
  const argv = [...wrap, process.execPath, "harness.ts", ...args];
  const child = Bun.spawn(argv, { cwd: ROOT, env, stdout: "pipe", stderr: "pipe" });
  const [output, errors] = await Promise.all([child.stdout.text(), child.stderr.text()]);
  return { code: await child.exited, output, errors };
}

/** Waits until a run folder holds nothing, and no process of it lives. */
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

// The folder of runs

test("a folder that cannot be made is one line, and exit code 2", async () => {
  const file = join(folder, "file");
  writeFileSync(file, "");
  const { code, errors } = await harness(["with", "--", "true"], environment(join(file, "runs")));
  expect(errors).toMatch(
    /^openshell-e2e: The folder for runs cannot be made: [^\n]+ Set OPENSHELL_E2E_RUN_DIR [^\n]+\n$/,
  );
  expect(code).toBe(2);
});

test("a folder that others can write to is refused", async () => {
  const runs = join(folder, "shared");
  mkdirSync(runs);
  chmodSync(runs, 0o777);
  const { code, errors } = await harness(["with", "--", "true"], environment(runs));
  expect(errors).toMatch(/^openshell-e2e: The folder for runs is not safe[^\n]+mode 777[^\n]+\n$/);
  expect(code).toBe(2);
});

test("a folder where each may remove only what is his own, as /tmp is one, will do", async () => {
  const runs = join(folder, "sticky");
  mkdirSync(runs);
  chmodSync(runs, 0o1777);
  expect((await harness(["with", "--", "true"], environment(runs))).code).toBe(0);
  await nothingLeft(runs);
});

test.skipIf(!isRoot)("a folder that another user made first is refused", async () => {
  const runs = join(folder, "theirs");
  mkdirSync(runs, { mode: 0o755 });
  chownSync(runs, 65_534, 65_534);
  const { code, errors } = await harness(["with", "--", "true"], environment(runs));
  expect(errors).toContain("owner 65534");
  expect(code).toBe(2);
});

test("a link that is named like a run leads a sweep nowhere", async () => {
  const runs = join(folder, "links");
  const precious = join(folder, "precious");
  mkdirSync(precious);
  mkdirSync(runs, { mode: 0o700 });
  writeFileSync(join(precious, "file"), "kept");
  symlinkSync(precious, join(runs, "deadbeef"));
  const { code, output } = await harness(["sweep"], environment(runs));
  expect(output).toContain("Nothing to sweep");
  expect(code).toBe(0);
  expect(readFileSync(join(precious, "file"), "utf8")).toBe("kept");
  expect(existsSync(join(runs, "deadbeef"))).toBe(true);
});

// Limits

test.skipIf(!isRoot)("a disk that is full is named, and nothing is left", async () => {
  const runs = join(folder, "small");
  mkdirSync(runs);
  const mounted = Bun.spawnSync(["mount", "-t", "tmpfs", "-o", "size=64k,mode=0700", "tmpfs", runs]);
  // A container may not be allowed to mount; then this cannot be seen here.
  if (mounted.exitCode !== 0) return console.log(`(skipped: ${mounted.stderr.toString().trim()})`);
  try {
    const { code, errors } = await harness(["with", "--", "true"], environment(runs));
    expect(errors).toContain("The folder for runs has too little room");
    expect(code).toBe(2);
    await nothingLeft(runs);
  } finally {
    Bun.spawnSync(["umount", "-l", runs]);
  }
});

test("128 file descriptors are enough", async () => {
  const runs = join(folder, "few");
  const few = ["sh", "-c", 'ulimit -n 128; exec "$@"', "few"];
  const { code, errors } = await harness(["with", "--", "true"], environment(runs), few);
  expect(errors).not.toContain("EMFILE");
  expect(code).toBe(0);
  await nothingLeft(runs);
});

// Other people's things

test("on an engine full of other people's things, nothing of theirs is touched and nothing of ours is left", async () => {
  const runs = join(folder, "busy");
  const socket = join(folder, "engine.sock");
  const tree = join(folder, "tree");
  mkdirSync(join(tree, "bin"), { recursive: true });
  // Of a sandbox image, the harness itself needs nothing but this.
  writeFileSync(join(tree, "bin", "sleep"), '#!/bin/sh\nexec /bin/sleep "$@"\n', { mode: 0o755 });
  const process = await startEngine(join(folder, "engine"), socket);
  try {
    const engine = new Engine(socket);
    await engine.importImage("localhost/sandbox:1", new Blob([tarOf(tree)]));
    await fill(engine);
    const before = await inventory(engine);
    const env = {
      ...environment(runs),
      OPENSHELL_PODMAN_SOCKET: socket,
      OPENSHELL_SANDBOX_IMAGE: "localhost/sandbox:1",
      OPENSHELL_E2E_FAKE: "gateway,driver,supervisor",
    };
    const { code, errors } = await harness(["with", "--", "true"], env);
    expect({ code, errors: errors.split("\n").slice(1) }).toEqual({ code: 0, errors: [""] });
    await nothingLeft(runs);
    expect(await inventory(engine)).toEqual(before);
    const { left } = await withKeeper(readSettings([], env).settings, async (keeper) => {
      const { id } = await keeper.call("startStack", {});
      for (const odd of ["-", "customer"]) await keeper.call("remember", id, odd);
    });
    expect(left).toEqual([expect.stringContaining('"-"'), expect.stringContaining('"customer"')]);
    await nothingLeft(runs);
    expect(await inventory(engine)).toEqual(before);
  } finally {
    process.kill();
    await process.exited;
  }
});

/** Names and labels like ours, of runs and sandboxes that are none of ours. */
async function fill(engine: Engine): Promise<void> {
  const id = crypto.randomUUID();
  const networks = ["openshell", "openshell-e2e-0badcafe-1", "openshell-e2e-0badcafe-10"];
  const post = (path: string, body: object, query: Record<string, string> = {}) =>
    engine.call("POST", path, { body, query });
  for (const name of networks)
    await post("networks/create", { name, driver: "bridge", labels: { "openshell-e2e.run": "0badcafe" } });
  for (const [index, network] of networks.entries()) {
    await post("containers/create", {
      name: `openshell-sandbox-default--box-${index}`,
      image: "localhost/sandbox:1",
      entrypoint: ["/bin/true"],
      labels: {
        "openshell.ai/managed": "true",
        "openshell.managed": "true",
        "openshell.ai/sandbox-id": id,
        "openshell.ai/sandbox-name": `box-${index}`,
        "openshell-e2e.run": "0badcafe",
      },
      netns: { nsmode: "bridge" },
      networks: { [network]: {} },
    });
    await post("volumes/create", { Name: `openshell-sandbox-${id}-${index}-workspace` });
  }
  await post("volumes/create", { Name: "openshell-customer-data" });
  const query = { name: `openshell-token-${id}` };
  await engine.call("POST", "secrets/create", { query, body: new Blob(["not a token"]) });
}

/** All that is on an engine, less images. */
async function inventory(engine: Engine): Promise<unknown> {
  const containers = await engine.call<{ Id: string; State: string }[]>("GET", "containers/json", {
    query: { all: "true" },
  });
  const [networks, volumes, secrets] = await Promise.all([
    engine.networks(),
    engine.volumes(),
    engine.secrets(),
  ]);
  return {
    containers: containers.map(({ Id, State }) => `${Id} ${State}`).toSorted(),
    networks: networks.toSorted(),
    volumes: volumes.toSorted(),
    secrets: secrets.toSorted(),
  };
}

// What goes on alone

/** The pids of processes of this machine with that word in their command line. */
const withWord = (word: string): number[] =>
  processTable().flatMap(({ pid, words }) => (words.includes(word) ? [pid] : []));

/** Starts `with` on a command that waits, and resolves once both its processes are there. */
async function withCommand(runs: string, word: string) {
  const script = `sh -c 'while :; do sleep 1; done' ${word} & wait`;
  const argv = [process.execPath, "harness.ts", "with", "--", "sh", "-c", script, word];
  const child = Bun.spawn(argv, { cwd: ROOT, env: environment(runs), stdio: ["ignore", "ignore", "ignore"] });
  // `with` itself has the word, too.
  const both = () => expect(withWord(word).filter((pid) => pid !== child.pid)).toHaveLength(2);
  await eventually(both, { what: "the command is running" });
  return child;
}

test.each(["with", "keeper and with"])(
  "a command of `with` does not outlive a SIGKILL of %s",
  async (victims) => {
    const runs = join(folder, `killed-${victims.length}`);
    const word = `word-${crypto.randomUUID()}`;
    const child = await withCommand(runs, word);
    const keeper = processTable().find(
      ({ words }) => words.includes("keep") && words.some((each) => each.startsWith(runs)),
    );
    if (victims !== "with") process.kill(keeper!.pid, "SIGKILL");
    child.kill("SIGKILL");
    await nothingLeft(runs);
    await eventually(() => expect(withWord(word)).toEqual([]), { what: "the command has ended" });
  },
);

test("what a command of `with` leaves running on purpose is its user's", async () => {
  const runs = join(folder, "daemon");
  const word = `word-${crypto.randomUUID()}`;
  const script = `sh -c 'exec 1>&- 2>&-; while :; do sleep 1; done' ${word} &`;
  const { code, errors } = await harness(["with", "--", "sh", "-c", script], environment(runs));
  expect({ code, left: errors.includes("left behind") }).toEqual({ code: 0, left: false });
  await nothingLeft(runs);
  const [pid] = withWord(word);
  expect(pid).toBeNumber();
  commandProcesses([markOf(pid!)]).forEach(kill);
});

const markOf = (pid: number): string =>
  readFileSync(`/proc/${pid}/environ`, "utf8")
    .split("\0")
    .find((entry) => entry.startsWith(`${COMMAND_MARK}=`))!
    .split("=")[1]!;

test("a run whose folder is removed while it goes on leaves no process, and says why it has no results", async () => {
  const runs = join(folder, "gone");
  const child = Bun.spawn(
    [process.execPath, "harness.ts", "with", "--", "sh", "-c", "echo up; read -r line || true"],
    {
      cwd: ROOT,
      env: environment(runs),
      stdin: "pipe",
      stdout: "pipe",
      stderr: "pipe",
    },
  );
  await child.stdout.getReader().read();
  const [run] = Run.all(readSettings([], environment(runs)).settings);
  rmSync(run!.folder, { recursive: true });
  child.stdin.end();
  expect(await child.stderr.text()).toContain("folder was removed or replaced while the run went on");
  // The command's own exit code: nothing is left.
  expect(await child.exited).toBe(0);
  await eventually(() => expect([readdirSync(runs), processesOf(run!)]).toEqual([[], []]), {
    what: "nothing left",
  });
});

test("a program that drops its environment and its session is ended with the run that started it, and named", async () => {
  const runs = join(folder, "dropped");
  const seconds = String(100_000 + Math.floor(Math.random() * 100_000));
  const driver = `bun ${join(ROOT, "examples", "process-driver.ts")}`;
  const script = `env -i setsid sleep ${seconds} & exec ${driver} "$@"`;
  const command = `sh -c '${script}' sh {socket} {endpoint} {supervisor} {state}`;
  const args = ["with", "--driver-cmd", command, "--", "true"];
  const { code, errors } = await harness(args, environment(runs));
  expect(errors).toMatch(new RegExp(`^left behind, removed: process \\d+ \\(sleep ${seconds}\\)$`, "m"));
  expect({ code, lives: withWord(seconds) }).toEqual({ code: 3, lives: [] });
  await nothingLeft(runs);
});

test.each(["ends", "is killed, and its keeper, too"])(
  "nothing is read, changed or removed where a link leads that took the place of a run's folder, when the run %s",
  async (how) => {
    const runs = join(folder, `swapped-${how.length}`);
    const elsewhere = join(folder, `elsewhere-${how.length}`);
    mkdirSync(join(elsewhere, "1"), { recursive: true });
    const files = ["precious.log", "engine.json", "1/driver.log"];
    for (const file of files) writeFileSync(join(elsewhere, file), "private");
    const word = `word-${crypto.randomUUID()}`;
    const child = await withCommand(runs, word);
    const [run] = Run.all(readSettings([], environment(runs)).settings);
    const keeper = processTable().find(
      ({ words }) => words.includes("keep") && words.some((each) => each.startsWith(runs)),
    );
    renameSync(run!.folder, `${run!.folder}-moved`);
    symlinkSync(elsewhere, run!.folder);
    if (how === "ends") child.kill("SIGTERM");
    else {
      process.kill(keeper!.pid, "SIGKILL");
      child.kill("SIGKILL");
    }
    await child.exited;
    const over = () => expect(processesOf(run!)).toEqual([]);
    await eventually(over, { what: "no process of the run is left" });
    await eventually(() => expect(processTable().some(({ pid }) => pid === keeper!.pid)).toBe(false), {
      what: "its keeper has ended",
    });
    const there = [...new Bun.Glob("**/*").scanSync(elsewhere)].toSorted();
    expect(there).toEqual(files.toSorted());
    for (const file of files) expect(readFileSync(join(elsewhere, file), "utf8")).toBe("private");
    const saved = new Bun.Glob("**/*").scanSync(join(folder, "reports"));
    expect([...saved].filter((name) => name.includes("precious"))).toEqual([]);
    // The command has lost its files, by which it would be known.
    for (const each of processTable()) if (each.words.includes(word)) kill(each);
  },
);
