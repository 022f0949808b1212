// SPDX-License-Identifier: Apache-2.0

/** Machines that are not like ours: a proxy, a checkout or a disk of somebody else's, names that no shell likes. */
import { ROOT } from "./root.ts";
import { afterAll, expect, setDefaultTimeout, test } from "bun:test";
import {
  chmodSync,
  cpSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { exemptLoopback } from "./environment.ts";
import { cacheFolder } from "../runtime/programs.ts";

setDefaultTimeout(60_000);

const folder = mkdtempSync(join(tmpdir(), "mc-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const environment = (runs: string): Record<string, string> => ({
  PATH: process.env.PATH!,
  HOME: process.env.HOME!,
  OPENSHELL_E2E_RUN_DIR: join(folder, runs),
  OPENSHELL_E2E_REPORTS: join(folder, `${runs}-reports`),
});

/** Runs bun in a folder to its end. */
async function bun(args: string[], cwd: string, env: Record<string, string>) {
  const child = Bun.spawn([process.execPath, ...args], { cwd, env, stdout: "pipe", stderr: "pipe" });
  const text = await Promise.all([child.stdout.text(), child.stderr.text()]);
  return { code: await child.exited, output: text.join("") };
}

/** A proxy that nobody serves, under every name by which a program looks for one. */
const PROXIED = Object.fromEntries(
  ["http_proxy", "https_proxy", "all_proxy", "grpc_proxy"].flatMap((name) =>
    [name, name.toUpperCase()].map((each) => [each, "http://127.0.0.1:9"]),
  ),
);

test.each([
  ["a stack", ["test", "external-podman", "-t", "SM-01"]],
  ["a gateway's health port", ["test", "gateway-adapter", "-t", "GA-105"]],
  ["a stack under load", ["soak", "--sandboxes", "1"]],
  ["a driver that is checked", ["check", "--only", "DC-40"]],
])("no proxy is asked for what is on this machine: %s", async (_, args) => {
  const { code, output } = await bun(["harness.ts", ...args], ROOT, {
    ...environment("proxied"),
    ...PROXIED,
    no_proxy: "example.org",
  });
  expect(code, output).toBe(0);
});

test("a command under `with` keeps its proxy, but not for the gateway", async () => {
  const print = 'echo "$http_proxy $no_proxy $NO_PROXY"';
  const env = { ...environment("proxied"), ...PROXIED, no_proxy: "example.org" };
  const { output } = await bun(["harness.ts", "with", "--", "sh", "-c", print], ROOT, env);
  const hosts = "example.org,127.0.0.1,localhost,::1";
  expect(output).toContain(`http://127.0.0.1:9 ${hosts} ${hosts}\n`);
});

test.each([
  ["no proxy is set", {}],
  ["nothing is to be proxied", { http_proxy: "http://proxy:1", no_proxy: "*", NO_PROXY: "*" }],
])("the environment stays as it is where %s", (_, before: NodeJS.ProcessEnv) => {
  const env = { ...before };
  exemptLoopback(env);
  expect(env).toEqual(before);
});

/** A checkout of its own, with the installed packages of this one. */
function checkout(name: string): string {
  const copy = join(folder, name);
  const left = ["node_modules", "reports", ".git"].map((each) => join(ROOT, each));
  cpSync(ROOT, copy, { recursive: true, filter: (path) => !left.includes(path) });
  symlinkSync(join(ROOT, "node_modules"), join(copy, "node_modules"));
  return copy;
}

test("a checkout and a folder for runs may have any name that a shell or a URL would read otherwise", async () => {
  const name = `it's "a" $(b) ü:(x)`;
  const copy = checkout(name);
  const runs = join(folder, `${name}?#%41`);
  const env = { ...environment("odd"), OPENSHELL_E2E_RUN_DIR: runs };
  const { code, output } = await bun(
    ["harness.ts", "test", "external-podman", "-t", "SM-01|CF-04"],
    copy,
    env,
  );
  expect(code, output).toBe(0);
  const results = readFileSync(join(folder, "odd-reports", "results.json"), "utf8");
  expect(results).toContain('"file":"scenarios/external-podman/smoke.test.ts"');
  expect(readdirSync(runs)).toEqual([]);
});

// Mounts and users of their own

const canUnshare = Boolean(Bun.which("unshare")) && Bun.spawnSync(["unshare", "-rm", "true"]).success;
const withMounts = (title: string, body: () => Promise<void>) =>
  test.skipIf(!canUnshare)(canUnshare ? title : `${title} (skipped: unshare -rm is not to be had)`, body);

/** Runs a shell with mounts of its own, in which `$0` is bun and `$1` the folder of this test. */
async function mounted(script: string, name: string, env: Record<string, string>) {
  const at = join(folder, name);
  mkdirSync(at, { mode: 0o700 });
  const argv = ["unshare", "-rm", "sh", "-ec", script, process.execPath, at];
  const child = Bun.spawn(argv, { cwd: ROOT, env, stdout: "pipe", stderr: "pipe" });
  const text = await Promise.all([child.stdout.text(), child.stderr.text()]);
  return { code: await child.exited, output: text.join("") };
}

withMounts("a read-only checkout does for a user without a name and a home", async () => {
  const reports = join(folder, "foreign-reports");
  mkdirSync(reports);
  const script = `mount --bind . "$1"; mount -o remount,bind,ro "$1"; cd "$1"
    exec unshare --user --map-user=4242 "$0" harness.ts test external-podman -t SM-01`;
  // Without HOME and XDG_CACHE_HOME the compiled fakes go there; so do runs.
  const TMPDIR = join(folder, "t");
  mkdirSync(TMPDIR);
  const env = { PATH: process.env.PATH!, TMPDIR, OPENSHELL_E2E_REPORTS: reports };
  const { code, output } = await mounted(script, "ro", env);
  expect(code, output).toBe(0);
  expect(readdirSync(TMPDIR)).toContain("openshell-e2e-cache-4242");
});

withMounts(
  "a folder for runs that does not do is refused before anything starts, and by doctor",
  async () => {
    const about = "The folder for runs";
    for (const [options, reason] of [
      [
        "noexec",
        `${about} does not do: \\S+: no program may be started from there \\(mounted with noexec\\)`,
      ],
      [
        "size=1m",
        `${about} has too little room: \\S+ has \\d MiB free, a run needs 64\\. Set OPENSHELL_E2E_RUN_DIR`,
      ],
      ["nr_inodes=99", `${about} has too little room: \\S+ has \\d+ inodes free, a run needs 4096\\.`],
    ]) {
      const script = `mount -t tmpfs -o mode=700,${options} tmpfs "$1"; export OPENSHELL_E2E_RUN_DIR="$1"
      "$0" harness.ts doctor || [ $? = 2 ]
      "$0" harness.ts with -- echo begun || code=$?
      ls -A "$1"; exit $code`;
      const { code, output } = await mounted(script, `m-${options}`, environment("none"));
      expect(output).toMatch(new RegExp(`^missing ${reason}`, "m"));
      expect(output).toMatch(new RegExp(`^openshell-e2e: ${reason}[^\\n]+\\n$`, "m"));
      expect(output).not.toContain("begun");
      expect(code, output).toBe(2);
    }
  },
);

withMounts(
  "a cache without room for the compiled fakes is named, and no half of one is left there",
  async () => {
    const script = `at=node_modules/.cache/openshell-e2e; mkdir -p $at
    mount -t tmpfs -o mode=700,size=100m tmpfs $at
    "$0" harness.ts with -- echo begun || code=$?
    ls -A $at; exit $code`;
    const { code, output } = await mounted(script, "small-cache", environment("small-cache"));
    const reason =
      /^openshell-e2e: The folder of compiled fakes has too little room: \S+ has \d+ MiB free, they need 512\..+\n$/m;
    expect(output).toMatch(reason);
    expect(output).not.toMatch(/begun|compiling/);
    expect(code, output).toBe(2);
  },
);

withMounts(
  "packages that cannot be installed end `bun run e2e` with the exit code of a machine's fault",
  async () => {
    const script = `mount --bind "$OLD" "$1"; mount -o remount,bind,ro "$1"; cd "$1"; exec "$0" run e2e`;
    const bare = join(folder, "bare");
    mkdirSync(bare);
    for (const file of ["package.json", "bun.lock", "bun-version.ts"])
      cpSync(join(ROOT, file), join(bare, file));
    const { PATH, HOME } = process.env as Record<string, string>;
    const { code, output } = await mounted(script, "uninstalled", { PATH: PATH!, HOME: HOME!, OLD: bare });
    expect(output).toContain('could not create the "node_modules" directory');
    expect(code).toBe(2);
  },
);

test("a clock that is set forward ends nothing before its time", async () => {
  const jump = join(folder, "jump.ts");
  writeFileSync(
    jump,
    "const real = Date.now; setTimeout(() => (Date.now = () => real() + 3_600_000), 300);\n",
  );
  const socket = join(folder, "clock.sock");
  const service = ["fakes/engine.ts", "--root", join(folder, "clock"), "system", "service", "--time=600"];
  const engine = Bun.spawn([process.execPath, "--preload", jump, ...service, `unix://${socket}`], {
    cwd: ROOT,
  });
  try {
    // It looks five times a second whether it is idle.
    expect(await Promise.race([engine.exited, Bun.sleep(1_500)])).toBeUndefined();
  } finally {
    engine.kill();
  }
});

withMounts("runs are on a disk where nothing may be started in memory, and doctor says why", async () => {
  const script = `mount -t tmpfs -o noexec,size=2g tmpfs /dev/shm; "$0" harness.ts doctor`;
  const { PATH, HOME } = process.env as Record<string, string>;
  const { code, output } = await mounted(script, "shm", { PATH: PATH!, HOME: HOME! });
  expect(output).toMatch(/^ok {6}run folder \/tmp\/openshell-e2e-\d+, /m);
  expect(output).toMatch(
    /^note {4}runs are not in memory: \/dev\/shm: no program may be started from there/m,
  );
  expect(code, output).toBe(0);
});

test.each([
  [
    "n 64",
    /^openshell-e2e: A limit is too low: max open files is 64, a run needs 128\. Raise it with `ulimit -n`$/m,
  ],
  [
    "f 100",
    /^openshell-e2e: A limit is too low: max file size is \d+, a run needs 256 MiB\. Raise it with `ulimit -f`$/m,
  ],
])("a limit that is too low is named, and no program is blamed: ulimit -%s", async (limit, reason) => {
  const script = `ulimit -${limit}; exec "$0" harness.ts with -- true`;
  const env = environment("limited");
  const child = Bun.spawn(["sh", "-c", script, process.execPath], { cwd: ROOT, env, stderr: "pipe" });
  expect(await child.stderr.text()).toMatch(reason);
  expect(await child.exited).toBe(2);
});

test("a program that cannot be started for want of descriptors is not blamed for it", async () => {
  const program = `import { openSync } from "node:fs";
    import { shortCommand } from "./harness/base/short-command.ts";
    try { for (;;) openSync("/dev/null", "r"); } catch {}
    await shortCommand(["true"]).catch(({ message }) => console.error(message));`;
  const script = `ulimit -n 300; exec "$0" -e "$1"`;
  const argv = ["sh", "-c", script, process.execPath, program];
  const child = Bun.spawn(argv, { cwd: ROOT, stderr: "pipe" });
  expect(await child.stderr.text()).toContain("as many files open as it may (ulimit -n)");
});

test("compiled fakes are kept where this user alone can write, and nowhere else", () => {
  const at = (name: string) => join(folder, "cache", name);
  for (const name of ["shared", "real"]) mkdirSync(at(name), { recursive: true });
  chmodSync(at("shared"), 0o777);
  symlinkSync(at("real"), at("link"));
  writeFileSync(at("file"), "");
  const bad = [at("shared"), at("link"), at("file")];
  expect(cacheFolder([...bad, at("own"), at("never")])).toBe(at("own"));
  expect(readdirSync(at("own"))).toEqual([]);
  expect(readdirSync(at(""))).not.toContain("never");
  expect(() => cacheFolder(bad)).toThrow(/Set XDG_CACHE_HOME .*shared: .*this user alone.*link: .*file: /s);
});
