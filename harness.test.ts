// SPDX-License-Identifier: Apache-2.0

import { afterAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { eventually } from "./harness/base/waiting.ts";
import { HarnessError } from "./harness/base/errors.ts";
import { readSettings } from "./harness/base/settings.ts";
import { findParts } from "./harness/runtime/places.ts";
import { Run } from "./harness/runtime/run.ts";
import { readable } from "./harness/base/readable.ts";

// Programs are started here, which takes its time on a busy machine.
setDefaultTimeout(60_000);

describe("settings", () => {
  test("a flag wins over the environment, and the environment over the default", () => {
    const environment = { OPENSHELL_E2E_STOP_TIMEOUT: "7" };
    expect(readSettings([], {}).settings.stopTimeout).toBe("1");
    expect(readSettings([], environment).settings.stopTimeout).toBe("7");
    expect(readSettings(["--stop-timeout", "9"], environment).settings.stopTimeout).toBe("9");
  });

  test("relative paths start from the folder in which they are given", () => {
    const { settings } = readSettings(["--driver-cmd", "./bin/my-driver {socket} ./config"], {
      OPENSHELL_E2E_REPORTS: "some/reports",
    });
    expect(settings.reports).toBe(join(process.cwd(), "some", "reports"));
    expect(settings.driverCmd).toBe(`${join(process.cwd(), "bin", "my-driver")} {socket} ./config`);
  });

  test("a socket may be named as Podman names it", async () => {
    const folder = mkdtempSync(join(tmpdir(), "hs-"));
    const socket = join(folder, "podman.sock");
    const server = createServer().listen(socket);
    await eventually(() => expect(existsSync(socket)).toBe(true), { what: "the socket" });
    const environment = { OPENSHELL_PODMAN_SOCKET: `unix://${socket}` };
    expect(readSettings([], environment).settings.podmanSocket).toBe(socket);
    server.close();
    rmSync(folder, { recursive: true });
  });

  test.each([
    ["an unknown flag", ["--sandbx-image", "x"], {}, "Unknown option '--sandbx-image'"],
    [
      "a program that is not there",
      [],
      { OPENSHELL_GATEWAY_BIN: "/no/such" },
      "OPENSHELL_GATEWAY_BIN: no such file: /no/such",
    ],
    ["a folder for a program", ["--driver-bin", "/"], {}, "--driver-bin: not a file: /"],
    ["a file that cannot be run", ["--driver-bin", import.meta.path], {}, "--driver-bin: not executable"],
    [
      "a socket that is a file",
      [],
      { OPENSHELL_PODMAN_SOCKET: import.meta.path },
      "OPENSHELL_PODMAN_SOCKET: a file, not a socket",
    ],
    [
      "an unknown place",
      [],
      { OPENSHELL_E2E_REQUIRE: "gateway,drivers" },
      "a list over gateway, driver, engine, supervisor",
    ],
    [
      "a stop timeout that is no number",
      ["--stop-timeout", "1s"],
      {},
      "a whole number of seconds was expected: 1s",
    ],
    [
      "a checkout that is not there",
      [],
      { OPENSHELL_REPO: "/no/such" },
      "OPENSHELL_REPO: no such folder: /no/such",
    ],
    [
      "a checkout that was not built",
      ["--repo", import.meta.dir],
      {},
      "--repo: none of openshell-gateway, openshell-driver-podman, openshell is in its target/release or target/debug; " +
        "build them (cargo build -p openshell-server",
    ],
    [
      "a real program for a place that is faked",
      ["--driver-cmd", "my-driver {socket}"],
      { OPENSHELL_E2E_FAKE: "gateway,driver" },
      "--driver-cmd names a real driver, and OPENSHELL_E2E_FAKE puts the fake in its place",
    ],
    [
      "a driver that is not told where to serve",
      ["--driver-cmd", "my-driver --port {port}"],
      {},
      "--driver-cmd: no {socket} in it: the driver is to serve on that path, which differs from run to run: my-driver",
    ],
    [
      "a quote that is not closed",
      [],
      { OPENSHELL_DRIVER_CMD: `my-driver {socket} "two words` },
      'OPENSHELL_DRIVER_CMD: a quote is not closed: my-driver {socket} "two words',
    ],
    ["a flag that is neither 0 nor 1", [], { OPENSHELL_E2E_ATTACH: "yes" }, "0 or 1 was expected: yes"],
  ])("%s is refused by name", (_, flags, environment, message) => {
    expect(() => readSettings(flags, environment)).toThrow(message);
  });
});

describe("places", () => {
  const partsFor = (environment: Record<string, string>) => findParts(readSettings([], environment).settings);

  test("everything that is not named is faked", () => {
    const parts = partsFor({});
    expect(Object.values(parts).map(({ real }) => real)).toEqual([false, false, false, false]);
  });

  test("a place that is required and was not found is an error that says how to name it", () => {
    expect(() => partsFor({ OPENSHELL_E2E_REQUIRE: "driver" })).toThrow(
      "Set OPENSHELL_DRIVER_BIN, OPENSHELL_DRIVER_CMD",
    );
  });

  test("a place cannot be both required and faked", () => {
    const both = { OPENSHELL_E2E_REQUIRE: "engine", OPENSHELL_E2E_FAKE: "engine,gateway" };
    expect(() => partsFor(both)).toThrow("both name engine");
  });

  test("a faked place stays fake though the real program is named", () => {
    const parts = partsFor({ OPENSHELL_GATEWAY_BIN: process.execPath, OPENSHELL_E2E_FAKE: "gateway" });
    expect(parts.gateway.real).toBe(false);
  });

  test("what a checkout has built is found, the release first", () => {
    const checkout = mkdtempSync(join(tmpdir(), "hc-"));
    const paths = ["debug", "release"].map((profile) =>
      join(checkout, "target", profile, "openshell-gateway"),
    );
    for (const path of paths) {
      mkdirSync(dirname(path), { recursive: true });
      writeFileSync(path, "");
      const { gateway, driver } = partsFor({ OPENSHELL_REPO: checkout });
      expect(gateway).toMatchObject({ real: true, command: [path] });
      expect(driver.real).toBe(false);
    }
    rmSync(checkout, { recursive: true });
  });

  test("a driver's command line is split at spaces, and quotes hold words together", () => {
    const parts = partsFor({ OPENSHELL_DRIVER_CMD: `my-driver --socket {socket} --title "two words" ''` });
    expect(parts.driver.command).toEqual(["my-driver", "--socket", "{socket}", "--title", "two words", ""]);
  });

  test("a driver that does not ask for our engine has its own, and images as they are set", () => {
    const parts = partsFor({
      OPENSHELL_DRIVER_CMD: "my-driver {socket} {sandbox_image} {supervisor_image}",
      OPENSHELL_SANDBOX_IMAGE: "box:1",
      OPENSHELL_SUPERVISOR_IMAGE: "supervisor:1",
    });
    expect(parts.engine.label).toBe("the driver's own");
    expect(parts.supervisor.label).toBe("supervisor:1");
    expect(partsFor({ OPENSHELL_DRIVER_CMD: "my-driver {socket} {podman_socket}" }).engine.label).toBe(
      "fake",
    );
  });

  test.each([
    ["sandbox_image", "Set OPENSHELL_SANDBOX_IMAGE"],
    ["supervisor_image", "Set OPENSHELL_SUPERVISOR_IMAGE, or start the program whose path is {supervisor}"],
  ])("{%s} that is on nobody's engine is refused", (image, advice) => {
    expect(() => partsFor({ OPENSHELL_DRIVER_CMD: `my-driver {socket} {${image}}` })).toThrow(
      `The driver's command has {${image}}, but no {podman_socket}: on the driver's own engine no image is known. ${advice}`,
    );
  });

  test("the real supervisor needs a real engine", () => {
    expect(() => partsFor({ OPENSHELL_SUPERVISOR_IMAGE: "x:1" })).toThrow(
      "the real supervisor needs a real engine",
    );
  });
});

describe("eventually", () => {
  test("returns what the attempt returns once it succeeds", async () => {
    let attempts = 0;
    const attempt = () => {
      if (++attempts < 3) throw new Error("not yet");
      return attempts;
    };
    expect(await eventually(attempt, { what: "count" })).toBe(3);
  });

  test("fails at the deadline with the last thing seen", async () => {
    const attempt = () => {
      throw new Error("seen so far: nothing");
    };
    const waiting = eventually(attempt, { what: "the moon", deadlineMs: 30 });
    await expect(waiting).rejects.toThrow("the moon: not within 30 ms\n  last seen: seen so far: nothing");
  });

  test("fails at once when what is awaited can no longer happen", async () => {
    const started = performance.now();
    const attempt = () => {
      throw new Error("no socket");
    };
    const waiting = eventually(attempt, {
      what: "driver",
      deadlineMs: 60_000,
      failed: () => "it ended with exit code 3",
    });
    await expect(waiting).rejects.toThrow("driver: it ended with exit code 3");
    expect(performance.now() - started).toBeLessThan(5_000);
  });

  test("an attempt that has no end keeps neither the deadline up nor the news that it is in vain", async () => {
    const attempt = () => new Promise<never>(() => {});
    const late = eventually(attempt, { what: "the moon", deadlineMs: 30 });
    await expect(late).rejects.toThrow("the moon: not within 30 ms");
    const vain = eventually(attempt, { what: "driver", deadlineMs: 60_000, failed: () => "it ended" });
    await expect(vain).rejects.toThrow("driver: it ended");
  });
});

test("what is shown to people has neither colour codes nor tokens", () => {
  const token = ["eyJhbGciOiJFZERTQSJ9", "eyJzdWIiOiJ4In0", "c2lnbmF0dXJl"].join(".");
  expect(readable(`\u001b[32mINFO\u001b[0m bearer ${token} sent`)).toBe("INFO bearer <token> sent");
});

test("a run folder whose sockets would have too long a path is refused before anything is made", () => {
  // Half as many letters as bytes.
  const folder = join(tmpdir(), "ü".repeat(40));
  const { settings } = readSettings([], { OPENSHELL_E2E_RUN_DIR: folder });
  expect(() => Run.create(settings)).toThrow(HarnessError);
  expect(() => Run.create(settings)).toThrow(
    /would be \d+ bytes, 99 is the most: .*Set OPENSHELL_E2E_RUN_DIR/s,
  );
  expect(existsSync(folder)).toBe(false);
});

describe("bad input to the command line", () => {
  const folder = mkdtempSync(join(tmpdir(), "ht-"));
  const runs = join(folder, "r");
  const program = (name: string, text: string): string => {
    writeFileSync(join(folder, name), text);
    chmodSync(join(folder, name), 0o755);
    return join(folder, name);
  };
  const impostor = program("openshell-gateway", "#!/bin/sh\necho something else 1.0\n");
  const wrapper = program("wrapper", "#!/bin/sh\nsleep 600 &\necho a wrapper\n");
  const textFile = program("text", "no first line that names an interpreter\n");

  afterAll(() => rmSync(folder, { recursive: true }));

  /** Runs the entry command, and checks what is true of every refusal: exit code 2, no stack trace, nothing left. */
  async function refused(args: string[], environment: Record<string, string> = {}): Promise<string> {
    const child = Bun.spawn([process.execPath, "harness.ts", ...args], {
      cwd: import.meta.dir,
      env: {
        PATH: process.env.PATH,
        HOME: process.env.HOME,
        OPENSHELL_E2E_RUN_DIR: runs,
        OPENSHELL_E2E_REPORTS: join(folder, "reports"),
        OPENSHELL_E2E_ATTACH: "0",
        ...environment,
      },
      stdout: "pipe",
      stderr: "pipe",
    });
    const [stderr, code] = await Promise.all([child.stderr.text(), child.exited]);
    expect(stderr).not.toMatch(/^\s+at /m);
    expect(code).toBe(2);
    expect(existsSync(runs) ? readdirSync(runs) : []).toEqual([]);
    return stderr.trim();
  }

  test("an unknown verb", async () => {
    expect(await refused(["tset"])).toBe("openshell-e2e: Unknown verb tset. See `bun harness.ts help`");
  });

  test.each(["constructor", "__proto__", "toString", ""])("the verb %j, which is none", async (verb) => {
    expect(await refused([verb])).toBe(`openshell-e2e: Unknown verb ${verb}. See \`bun harness.ts help\``);
  });

  test.each<[string[], string]>([
    [["test", "external-podman", "-t", ""], "-t: a value was expected, and it is empty"],
    [["up", "--fault", " "], "--fault: a value was expected, and it is empty"],
    [["up", "--fault="], "--fault: a value was expected, and it is empty"],
    [["up", "--run-dir", ""], "--run-dir: a value was expected, and it is empty"],
    [
      ["report", "--format", "html", "--format", "junit"],
      "--format: it is given more than once, and one value counts",
    ],
    [["test", "-t", "a", "-t", "b"], "-t: it is given more than once, and one value counts"],
    [["test", "-t"], "Option '-t, --t <value>' argument missing. See `bun harness.ts help`"],
    [["up", "--parallel", "0"], "--parallel: a number from 1 to 99 was expected: 0"],
    [["soak", "--minutes", "0"], "--minutes: a number from 1 to 1440 was expected: 0"],
    [["up", ""], "up: unexpected empty argument. See `bun harness.ts help up`"],
  ])("%j", async (args, message) => {
    expect(await refused(args)).toBe(`openshell-e2e: ${message}`);
  });

  test("a value of any length is refused in one line that can be read", async () => {
    const long = "x".repeat(100_000);
    for (const [verb, flag] of [
      ["up", "--parallel"],
      ["up", "--fault"],
      ["test", "-t"],
      ["check", "--backend-list"],
    ] as const)
      expect(await refused([verb, flag, long])).toBe(
        `openshell-e2e: ${flag}: it has 100000 characters, and 32768 is the most`,
      );
  });

  test("an unknown suite", async () => {
    for (const name of ["external-docker", "..", "preload.ts", "external-podman/smoke.test.ts"])
      expect(await refused(["test", name])).toBe(
        `openshell-e2e: test: there is no suite ${name}; there are disruption, driver-contract, external-podman, gateway-adapter`,
      );
  });

  test.each(["doctor", "up", "bench", "soak", "sweep", "check", "mutants", "parity"])(
    "%s with an argument that it does not take",
    async (verb) => {
      expect(await refused([verb, "extra"])).toBe(
        `openshell-e2e: ${verb}: unexpected extra. See \`bun harness.ts help ${verb}\``,
      );
    },
  );

  test("a seed without the chaos that it is for", async () => {
    expect(await refused(["soak", "--seed", "5"])).toBe(
      "openshell-e2e: --seed: it is that of the chaos: --chaos was expected beside it",
    );
  });

  test("keep, which is not for people", async () => {
    expect(await refused(["keep"])).toStartWith("openshell-e2e: keep: the harness itself starts it");
    expect(await refused(["keep", folder, "1"])).toContain("is not the folder of a run");
  });

  test("help of a verb that there is not", async () => {
    expect(await refused(["help", "chekc"])).toBe(
      "openshell-e2e: help: there is no verb chekc. See `bun harness.ts help`",
    );
  });

  test("a program that is another one than its setting promises", async () => {
    const said = await refused(["with", "--", "true"], { OPENSHELL_GATEWAY_BIN: impostor });
    expect(said).toBe(
      `openshell-e2e: OPENSHELL_GATEWAY_BIN: ${impostor} is not openshell-gateway: \`--version\` printed "something else 1.0"`,
    );
  });

  test("a driver that exits: its exit code, its last words, its command line", async () => {
    const said = await refused(["with", "--", "true"], {
      OPENSHELL_DRIVER_CMD: "sh -c 'echo no backend; exit 3' {socket}",
    });
    expect(said).toContain("driver: bind its socket: it ended with exit code 3");
    expect(said).toContain("| no backend");
    expect(said).toContain("command: sh -c echo no backend; exit 3 /");
  });

  test("an unknown placeholder: the known ones", async () => {
    const said = await refused(["with", "--", "true"], { OPENSHELL_DRIVER_CMD: "my-driver {sockt}" });
    expect(said).toContain(
      "OPENSHELL_DRIVER_CMD: unknown placeholder {sockt}; known are {socket} {endpoint}",
    );
  });

  test("a variable that is not set is not set for the driver either", async () => {
    const said = await refused(["with", "--", "true"], {
      A_SET: "set",
      OPENSHELL_DRIVER_ENV: "A_SET, A_UNSET",
      OPENSHELL_DRIVER_CMD: `sh -c 'echo seen: $A_SET \${A_UNSET-unset}; exit 3' {socket}`,
    });
    expect(said).toContain("| seen: set unset");
  });

  test("{supervisor} is a program that any driver can start", async () => {
    const said = await refused(["with", "--", "true"], {
      OPENSHELL_DRIVER_CMD: `sh -c '"$0" --version; exit 3' {supervisor} {socket}`,
    });
    expect(said).toMatch(/\| openshell-sandbox \d+\.\d+\.\d+\S*fake$/m);
  });

  test.each([
    ["no-such-driver {socket}", "no such program: no-such-driver"],
    ["./no-such-driver {socket}", `no such program: ${join(import.meta.dir, "no-such-driver")}`],
    ["./harness {socket}", `a folder, not a program: ${join(import.meta.dir, "harness")}`],
    ["./README.md {socket}", `not executable (chmod +x): ${join(import.meta.dir, "README.md")}`],
  ])("a driver that cannot be run: %s", async (command, problem) => {
    expect(await refused(["with", "--", "true"], { OPENSHELL_DRIVER_CMD: command })).toBe(
      `openshell-e2e: OPENSHELL_DRIVER_CMD: ${problem}`,
    );
  });

  test("a driver that is no program for this machine: what it is, not posix_spawn's words", async () => {
    const said = await refused(["with", "--", "true"], { OPENSHELL_DRIVER_CMD: `${textFile} {socket}` });
    expect(said).toContain("driver: cannot be started: it is neither a program for this machine");
  });

  test("a program that leaves a process in the background is waited for no longer than it lives", async () => {
    const began = performance.now();
    const said = await refused(["with", "--", "true"], { OPENSHELL_GATEWAY_BIN: wrapper });
    expect(said).toContain("OPENSHELL_GATEWAY_BIN: ");
    expect(said).toContain('`--version` printed "a wrapper"');
    expect(performance.now() - began).toBeLessThan(15_000);
  });

  test("an image that cannot be had, and an engine that is gone", async () => {
    const socket = join(folder, "e.sock");
    const argv = ["fakes/engine.ts", "--root", join(folder, "engine"), "system", "service", "--time=0"];
    const engine = Bun.spawn([process.execPath, ...argv, `unix://${socket}`], {
      cwd: import.meta.dir,
      stdout: "ignore",
      stderr: "ignore",
    });
    await eventually(() => expect(existsSync(socket)).toBe(true), { what: "the engine's socket" });
    const environment = { OPENSHELL_PODMAN_SOCKET: socket, OPENSHELL_SANDBOX_IMAGE: "localhost/nope:1" };
    const missing = await refused(["with", "--", "true"], environment);
    expect(missing).toContain('The image localhost/nope:1 cannot be had (pull policy "missing"): ');
    engine.kill("SIGKILL");
    await engine.exited;
    const gone = await refused(["with", "--", "true"], environment);
    expect(gone).toBe(
      `openshell-e2e: engine on ${socket}: GET info: nobody listens there. ` +
        `Start it: podman system service --time=0 unix://${socket}`,
    );
  });

  test.each([
    [
      ["--driver", "false"],
      "--driver names a real driver, and OPENSHELL_E2E_FAKE puts the fake in its place",
    ],
    [["--driver", ""], "--driver: a value was expected, and it is empty"],
    [["--socket="], "--socket: a value was expected, and it is empty"],
    [["--driver", "my-driver {sockt}"], "--driver: unknown placeholder {sockt}; known are {socket}"],
    [["--only", " "], "--only: a value was expected, and it is empty"],
  ])("check %j", async (flags, message) => {
    const fake = message.includes("FAKE") ? "driver" : "";
    expect(await refused(["check", ...flags], { OPENSHELL_E2E_FAKE: fake })).toStartWith(
      `openshell-e2e: ${message}`,
    );
  });

  test("a command that is not there", async () => {
    expect(await refused(["with", "--", "no-such-command"])).toContain(
      "with: no such program: no-such-command",
    );
  });
});

describe("help", () => {
  async function help(...args: string[]): Promise<string> {
    const child = Bun.spawn([process.execPath, "harness.ts", ...args], {
      cwd: import.meta.dir,
      stdout: "pipe",
      stderr: "pipe",
    });
    const [output, errors] = await Promise.all([child.stdout.text(), child.stderr.text()]);
    expect({ errors, code: await child.exited }).toEqual({ errors: "", code: 0 });
    return output;
  }

  test("of everything is asked in four ways", async () => {
    const all = await help("help");
    expect(all).toContain("OPENSHELL_E2E_REQUIRE");
    expect(all).toContain("{supervisor}");
    for (const args of [[], ["--help"], ["-h"]]) expect(await help(...args)).toBe(all);
  });

  test("of one verb is asked in three ways, and says nothing of others", async () => {
    const check = await help("help", "check");
    expect(check).toContain("--backend-list CMD");
    expect(check).not.toContain("mutants");
    for (const flag of ["--help", "-h"]) expect(await help("check", flag)).toBe(check);
    expect(await help("up", "--help")).toContain("Faults: METHOD: WHAT");
  });
});
