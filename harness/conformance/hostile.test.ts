// SPDX-License-Identifier: Apache-2.0

/** Whatever driver it is given, `check` ends in time, says what it met, and leaves nothing. */
import { ROOT } from "../base/root.ts";
import { afterAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { processTable } from "../runtime/processes.ts";

// Programs are started here, which takes its time on a busy machine.
setDefaultTimeout(60_000);

const FOLDER = mkdtempSync(join(tmpdir(), "hostile-"));
afterAll(() => rmSync(FOLDER, { recursive: true, force: true }));

/** A run of `check`: how it ended, and what it said. */
interface Checked {
  code: number;
  output: string;
  /** The words that begin the line of each check, such as "pass DC-12". */
  verdicts: string[];
}

let folders = 0;

/** Checks a hostile driver by these checks, and makes sure that nothing is left. */
async function check(kind: string, only: string): Promise<Checked> {
  // A short name: the paths of sockets in it are bounded.
  const runs = join(FOLDER, String(++folders));
  const driver = `${process.execPath} ${join(import.meta.dir, "hostile.fixture.ts")} ${kind} {socket}`;
  const argv = ["check", "--driver", driver, "--only", only, "--reports", `${runs}-reports`];
  const { PATH, HOME } = process.env;
  const child = Bun.spawn([process.execPath, "harness.ts", ...argv], {
    cwd: ROOT,
    env: { PATH, HOME, OPENSHELL_E2E_RUN_DIR: runs },
    stdout: "pipe",
    stderr: "pipe",
    timeout: AT_MOST_MS - 5_000,
    killSignal: "SIGKILL",
  });
  const [said, problems] = await Promise.all([child.stdout.text(), child.stderr.text()]);
  const code = await child.exited;
  const output = said + problems;
  expect(child.signalCode, `it took too long; it said:\n${output}`).toBeNull();
  expect(readdirSync(runs)).toEqual([]);
  expect(processTable().filter(({ command }) => command.includes(`${kind} ${runs}`))).toEqual([]);
  const verdicts = [...said.matchAll(/^(\w+) +(DC-\d+) .*\[\d+ ms\]$/gm)].map(
    ([, verdict, id]) => `${verdict} ${id}`,
  );
  return { code, output, verdicts };
}

const AT_MOST_MS = 120_000;

describe("a driver that does not come up: every check is an ERROR, and the cause is told once", () => {
  test.concurrent.each([
    ["never-binds", "bind its socket: not within 30000 ms"],
    ["ends-at-once", "bind its socket: it ended with exit code 7"],
    ["ends-with-a-long-line", "bind its socket: it ended with exit code 7"],
    ["never-answers", "answer GetCapabilities: not within 5000 ms"],
    ["garbage", "answer GetCapabilities: not within 5000 ms"],
    ["http-1", "answer GetCapabilities: not within 5000 ms"],
    ["ssh-banner", "last seen: UNAVAILABLE: Protocol error"],
    ["goaway-at-once", "last seen: UNAVAILABLE: New streams cannot be created after receiving a GOAWAY"],
    ["no-streams", "last seen: /openshell.compute.v1.ComputeDriver/GetCapabilities: not within 3000 ms"],
    ["resets-each-stream", "last seen: INTERNAL: Received RST_STREAM with code 0, and no gRPC status"],
    ["other-service", "last seen: UNIMPLEMENTED"],
  ])(
    "%s",
    async (kind, cause) => {
      const { code, output, verdicts } = await check(kind, "B");
      expect(output.split(cause)).toHaveLength(2);
      expect(output).toContain(`hostile.fixture.ts ${kind}`);
      if (kind === "ends-at-once") expect(output).toContain("| hostile: no such luck");
      if (kind === "ends-with-a-long-line") expect(output).toContain("| hostile: out of words");
      // The cause comes first, and the checks that it keeps from being asked are one line.
      const all = "ERROR 5 checks from DC-12 to DC-18 not run: the driver did not come up\n";
      expect(output.indexOf(cause)).toBeLessThan(output.indexOf(all));
      expect(output).toEndWith("\ndriver-contract: 0 passed, 0 failed, 0 skipped, 5 errors\n");
      expect(verdicts).toEqual([]);
      expect(code).toBe(2);
    },
    AT_MOST_MS,
  );
});

test.concurrent(
  "a driver that goes into the background is taken for ended, and what goes on there is ended with the run",
  async () => {
    const { code, output } = await check("daemonizes", "DC-12");
    expect(output.split("bind its socket: it ended with exit code 0")).toHaveLength(2);
    expect(code).toBe(2);
  },
  AT_MOST_MS,
);

test.concurrent(
  "a driver that answers with trailers alone is told so in one line",
  async () => {
    const { code, output } = await check("trailers-only", "DC-12");
    const told = /^openshell-e2e: The driver on \S+ does not answer GetCapabilities: .*No message received$/m;
    expect(output).toMatch(told);
    expect(code).toBe(2);
  },
  AT_MOST_MS,
);

describe("a driver that comes up", () => {
  const hostile = (what: string, body: () => Promise<void>) => test.concurrent(what, body, AT_MOST_MS);

  hostile("and removes the run's folder ends the run in words, and leaves nothing", async () => {
    const { code, output } = await check("deletes-the-run", "DC-12,DC-51");
    expect(output).toContain("the run's folder was removed or replaced while the run went on");
    expect(output).not.toMatch(/^ +at /m);
    expect(code).toBe(2);
  });

  test.concurrent.each([
    ["removes-its-socket", /what is at \S+ now: no such socket$/m],
    ["becomes-a-file", /what is at \S+ now: a file, not a socket$/m],
    ["becomes-a-link", /what is at \S+ now: a file, not a socket$/m],
    [
      "becomes-another-server",
      /last seen: UNAVAILABLE: No connection established. Last error: Protocol error/,
    ],
  ])(
    "and whose socket is gone then (%s): an ERROR that says what was met there, and nothing after it is asked",
    async (kind, met) => {
      const { code, output } = await check(kind, "DC-12,DC-51,DC-81");
      expect(output).toMatch(met);
      expect(output).toMatch(
        /^ERROR 2 checks from DC-\d+ to DC-\d+ not run: the driver is gone since DC-\d+$/m,
      );
      expect(code).toBe(2);
    },
    AT_MOST_MS,
  );

  hostile("and breaks each connection after one call is judged by what it answers", async () => {
    const { code, output, verdicts } = await check("closes-after-each-call", "DC-10,DC-12,DC-45");
    expect(verdicts).toHaveLength(3);
    expect(output).not.toContain("ERROR DC");
    expect(code).toBe(1);
  });

  hostile("and answers nothing but GetCapabilities fails what else it is asked", async () => {
    const { code, output, verdicts } = await check("answers-no-call", "DC-12,DC-45");
    expect(verdicts.toSorted()).toEqual(["FAIL DC-45", "pass DC-12"]);
    expect(output).toContain("no answer within 10000 ms");
    expect(code).toBe(1);
  });

  hostile("and floods a watch with 10,000 events is judged all the same", async () => {
    const { code, output, verdicts } = await check("floods", "DC-10,DC-12,DC-81");
    expect(verdicts.toSorted()).toEqual(["FAIL DC-81", "older DC-10", "pass DC-12"]);
    expect(output.length).toBeLessThan(20_000);
    expect(code).toBe(1);
  });

  const DECODE = "failed to decode Protobuf message: ";
  test.concurrent.each<[kind: string, failing: string, seen: string]>([
    [
      "watch-no-protobuf",
      "DC-81",
      `INTERNAL: Response message parsing error: ${DECODE}invalid wire type value: 6`,
    ],
    ["watch-truncated", "DC-81", `${DECODE}WatchSandboxesEvent.payload: buffer underflow`],
    ["watch-wrong-wire-type", "DC-171", `${DECODE}WatchSandboxesEvent.payload: invalid wire type: Varint`],
    [
      "watch-not-utf-8",
      "DC-81",
      "WatchSandboxesEvent.payload: invalid string value: data is not UTF-8 encoded",
    ],
    ["watch-length-that-lies", "DC-171", "a message of 4294967295 bytes, 4194304 are the most"],
    ["watch-compressed", "DC-81", "INTERNAL: Received a compressed message, and it cannot be decompressed"],
    ["watch-compressed", "DC-171", "a message with the compression flag 1, and none was agreed on"],
    [
      "list-not-utf-8",
      "DC-51",
      "ListSandboxesResponse.sandboxes: invalid string value: data is not UTF-8 encoded",
    ],
    ["list-65-mb", "DC-51", "RESOURCE_EXHAUSTED: Received message larger than max (68157440 vs 4194304)"],
  ])(
    "and answers with what is no message (%s) fails the check that reads it: %s",
    async (kind, failing, seen) => {
      const { code, output, verdicts } = await check(kind, `DC-12,${failing}`);
      expect(verdicts.toSorted()).toEqual([`FAIL ${failing}`, "pass DC-12"]);
      expect(output.split(seen).length).toBeGreaterThan(1);
      expect(output).not.toContain("left behind");
      expect(code).toBe(1);
    },
    AT_MOST_MS,
  );

  hostile("and sends a snapshot of 5 MB fails, as it does with a gateway", async () => {
    const { code, output, verdicts } = await check("big", "DC-12,DC-51");
    expect(verdicts.toSorted()).toEqual(["FAIL DC-51", "pass DC-12"]);
    expect(output).toContain("RESOURCE_EXHAUSTED: Received message larger than max");
    expect(output.length).toBeLessThan(20_000);
    expect(code).toBe(1);
  });

  hostile("and brings no sandbox up: after four checks the rest is not run, and it is told why", async () => {
    const { code, output, verdicts } = await check("never-up", "F,G,I");
    expect(verdicts.filter((verdict) => verdict.startsWith("FAIL")).length).toBeGreaterThanOrEqual(4);
    expect(output).toMatch(
      /^ERROR \d+ checks from DC-\d+ to DC-\d+ not run: no sandbox came up in 4 checks, the last was DC-\d+/m,
    );
    expect(output).toContain("a sandbox that is up within 15000 ms");
    expect(output).toContain("Unschedulable");
    expect(code).toBe(2);
  });

  hostile("and floods its log is judged all the same, and it is told how much it wrote", async () => {
    const { code, output } = await check("floods-its-log", "DC-12,DC-45");
    // What was not kept may end in a line.
    expect(output).toMatch(/^ +\| .*hostile: out of luck$/m);
    expect(output).toMatch(/^driver\/1 floods its log: [\d.]+ MB of it were not kept$/m);
    expect(output.length).toBeLessThan(20_000);
    expect(code).toBe(2);
  });

  hostile(
    "and crashes in a check: an ERROR with its end and its last words, and one line for all checks after it",
    async () => {
      const { code, output, verdicts } = await check("crashes", "E,DC-12");
      expect(verdicts).toContain("ERROR DC-45");
      expect(output).toMatch(
        /^ERROR \d+ checks from DC-\d+ to DC-\d+ not run: the driver is gone since DC-45$/m,
      );
      expect(output).toContain("the driver is gone: it ended with exit code 7");
      expect(output).toContain("| hostile: out of luck");
      // Nothing was made; that it can delete nothing any more is no finding.
      expect(output).not.toContain("leaves something behind");
      expect(code).toBe(2);
    },
  );
});
