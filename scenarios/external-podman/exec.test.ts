// SPDX-License-Identifier: Apache-2.0

/** Commands in a sandbox: what goes in, what comes out, and how they end. */
import { expect } from "bun:test";
import { randomBytes } from "node:crypto";
import { refusal, scenario } from "../../harness.ts";
import { DIFFICULT_WORDS, invalid, printed } from "./sandboxes.ts";

// Output and exit code

scenario("EX-01 stdout and stderr arrive apart, byte by byte", async ({ gateway }) => {
  const sandbox = await gateway.readySandbox();
  const { bytes } = await sandbox.exec(["sh", "-c", "printf '\\377\\000out'; printf '\\200err' >&2"]);
  expect(bytes.stdout).toEqual(Buffer.from("\xff\x00out", "latin1"));
  expect(bytes.stderr).toEqual(Buffer.from("\x80err", "latin1"));
});

scenario("EX-02 a command's exit code is the command's own", async ({ gateway }) => {
  const sandbox = await gateway.readySandbox();
  for (const code of [0, 3, 255]) {
    expect(await sandbox.exec(["sh", "-c", `exit ${code}`])).toMatchObject({ exitCode: code, stdout: "" });
  }
});

scenario("EX-03 megabytes of output are complete when the exit code arrives", async ({ gateway }) => {
  const sandbox = await gateway.readySandbox();
  const { bytes, exitCode } = await sandbox.exec([
    "sh",
    "-c",
    "head -c 3000000 /dev/urandom; echo; echo end",
  ]);
  expect(exitCode).toBe(0);
  expect(bytes.stdout).toHaveLength(3_000_005);
  expect(bytes.stdout.subarray(-5).toString()).toBe("\nend\n");
});

scenario("EX-04 a command that does not exist ends with 127 and says so", async ({ gateway }) => {
  const sandbox = await gateway.readySandbox();
  const { exitCode, stderr } = await sandbox.exec(["no-such-command"]);
  expect(exitCode).toBe(127);
  expect(stderr).toContain("no-such-command");
});

scenario("EX-05 a command that a signal ended has exit code 1", async ({ gateway }) => {
  const sandbox = await gateway.readySandbox();
  for (const signal of ["KILL", "TERM"]) {
    const { exitCode } = await sandbox.exec(["sh", "-c", `kill -${signal} $$`]);
    expect(exitCode).toBe(1);
  }
});

scenario(
  "EX-06 a command that outlives its timeout ends with 124 and the output so far",
  async ({ gateway }) => {
    const sandbox = await gateway.readySandbox();
    const { exitCode, stdout } = await sandbox.exec(["sh", "-c", "echo begun; sleep 30"], {
      timeoutSeconds: 1,
    });
    expect({ exitCode, stdout }).toEqual({ exitCode: 124, stdout: "begun\n" });
  },
);

scenario("EX-07 commands that run at once do not mix", async ({ gateway }) => {
  const sandbox = await gateway.readySandbox();
  // Each waits for all the others.
  const meet = `echo > here-$N; until set -- here-*; test $# = 12; do sleep 0.05; done; cat; exit $N`;
  const run = (n: number) =>
    sandbox.exec(["sh", "-c", meet], { stdin: `input ${n}`, environment: { N: String(n) } });
  const results = await Promise.all(Array.from({ length: 12 }, (_, n) => run(n)));
  for (const [n, result] of results.entries()) {
    expect(result).toMatchObject({ stdout: `input ${n}`, stderr: "", exitCode: n });
  }
});

// Arguments, input, environment, folder

scenario("EX-10 arguments arrive as they were sent", async ({ gateway }) => {
  const sandbox = await gateway.readySandbox();
  const { stdout } = await sandbox.exec(["printf", "<%s>", ...DIFFICULT_WORDS]);
  expect(stdout).toBe(printed(...DIFFICULT_WORDS));
});

scenario("EX-11 a command reads its input to the end, also when there is none", async ({ gateway }) => {
  const sandbox = await gateway.readySandbox();
  expect(await sandbox.exec(["cat"], { stdin: "one\ntwo" })).toMatchObject({
    stdout: "one\ntwo",
    exitCode: 0,
  });
  expect(await sandbox.exec(["wc", "-c"])).toMatchObject({ stdout: "0\n", exitCode: 0 });
});

scenario("EX-12 a megabyte of arbitrary bytes passes through a command unchanged", async ({ gateway }) => {
  const sandbox = await gateway.readySandbox();
  const input = randomBytes(1_000_000);
  const { bytes } = await sandbox.exec(["cat"], { stdin: input });
  expect(bytes.stdout.equals(input)).toBe(true);
});

scenario("EX-13 input above the gateway's limit of 1 MiB a message is refused", async ({ gateway }) => {
  const sandbox = await gateway.readySandbox();
  const { code } = await refusal(sandbox.exec(["cat"], { stdin: new Uint8Array(1 << 20) }));
  // gRPC libraries differ in how they call it.
  expect(["OUT_OF_RANGE", "RESOURCE_EXHAUSTED"]).toContain(code);
});

scenario(
  "EX-14 a command's own environment wins over the sandbox's and its template's",
  async ({ gateway }) => {
    const template = { environment: { A: "template", B: "template", C: "template" } };
    const sandbox = await gateway.readySandbox({ template, environment: { A: "sandbox", B: "sandbox" } });
    const show = ["sh", "-c", "echo $A $B $C"];
    const { stdout } = await sandbox.exec(show, { environment: { A: "command" } });
    expect(stdout).toBe("command sandbox template\n");
    // And only for that command.
    expect((await sandbox.exec(show)).stdout).toBe("sandbox sandbox template\n");
  },
);

scenario("EX-15 values in the environment arrive as they were sent", async ({ gateway }) => {
  const [OUTER, INNER] = ["$A 'b' \"c\" `d` \\ ü", " $A 'b' \"c\" `d` \\ = ü "];
  const sandbox = await gateway.readySandbox({ environment: { OUTER } });
  const show = ["sh", "-c", 'printf "<%s>" "$OUTER" "$INNER"'];
  const { stdout } = await sandbox.exec(show, { environment: { INNER } });
  expect(stdout).toBe(printed(OUTER, INNER));
});

scenario("EX-16 a request that cannot be run as it stands is refused", async ({ gateway }) => {
  const sandbox = await gateway.readySandbox();
  expect(await refusal(sandbox.exec([]))).toEqual(invalid("command is required"));
  const wrong: [name: string, value: string, message: string][] = [
    ["1ST", "x", "environment keys must match ^[A-Za-z_][A-Za-z0-9_]*$"],
    ["A", "line\nbreak", "environment value for 'A' contains newline or carriage return characters"],
    ["OPENSHELL_A", "x", "environment keys starting with OPENSHELL_ are reserved; got 'OPENSHELL_A'"],
  ];
  for (const [name, value, message] of wrong) {
    const refused = refusal(sandbox.exec(["env"], { environment: { [name]: value } }));
    expect(await refused).toEqual(invalid(message));
  }
});

scenario("EX-17 a command runs in the workspace, or in the folder that it names", async ({ gateway }) => {
  const sandbox = await gateway.readySandbox();
  const { stdout: workspace } = await sandbox.exec(["sh", "-c", "mkdir 'sub folder' && pwd"]);
  const { stdout: folder } = await sandbox.exec(["pwd"], { workdir: "sub folder" });
  expect(folder).toBe(`${workspace.trimEnd()}/sub folder\n`);
  const absolute = await sandbox.exec(["pwd"], { workdir: folder.trimEnd() });
  expect(absolute.stdout).toBe(folder);
});

scenario("EX-18 a command whose folder does not exist is not run", async ({ gateway }) => {
  const sandbox = await gateway.readySandbox();
  const { exitCode, stdout, stderr } = await sandbox.exec(["echo", "ran"], { workdir: "no-such-folder" });
  expect(exitCode).not.toBe(0);
  expect(stdout).toBe("");
  expect(stderr).toContain("no-such-folder");
});

// Terminals

scenario("EX-20 a command has a terminal when it asks for one, and else none", async ({ gateway }) => {
  const sandbox = await gateway.readySandbox();
  const look = ["sh", "-c", 'for fd in 0 1 2; do test -t $fd && echo "$fd"; done; echo "error" >&2; exit 5'];
  const piped = await sandbox.exec(look);
  expect(piped).toMatchObject({ stdout: "", stderr: "error\n", exitCode: 5 });
  // On a terminal there is one stream, and its lines end as on paper.
  const onTerminal = await sandbox.exec(look, { tty: true });
  expect(onTerminal).toMatchObject({ stdout: "0\r\n1\r\n2\r\nerror\r\n", stderr: "", exitCode: 5 });
});

scenario("EX-21 a terminal's type is xterm-256color", async ({ gateway }) => {
  const sandbox = await gateway.readySandbox();
  const { stdout } = await sandbox.exec(["sh", "-c", "echo $TERM"], { tty: true });
  expect(stdout).toBe("xterm-256color\r\n");
});

scenario("EX-22 a terminal has the size it was asked for, and follows its window", async ({ gateway }) => {
  const sandbox = await gateway.readySandbox();
  const size = ["sh", "-c", "stty size; read line; stty size; exit 4"];
  const command = sandbox.interact(size, { cols: 100, rows: 33 });
  await command.shows("33 100");
  command.resize(132, 50);
  command.write("\n");
  expect(await command.result).toMatchObject({ stdout: expect.stringContaining("50 132"), exitCode: 4 });
});

scenario("EX-23 a terminal turns Ctrl-C into an interrupt", async ({ gateway }) => {
  const sandbox = await gateway.readySandbox();
  const wait = "trap 'echo interrupted; exit 6' INT; echo up; while :; do sleep 0.05; done";
  const command = sandbox.interact(["sh", "-c", wait]);
  await command.shows("up");
  command.write("\x03");
  expect(await command.result).toMatchObject({ stdout: expect.stringContaining("interrupted"), exitCode: 6 });
});

scenario(
  "EX-24 an interactive command without a terminal answers while its input is open",
  async ({ gateway }) => {
    const sandbox = await gateway.readySandbox();
    const talk = 'while read line; do test "$line" = bye && exit 7; echo "you said $line"; done';
    const command = sandbox.interact(["sh", "-c", talk], { tty: false });
    for (const word of ["one", "two"]) {
      command.write(`${word}\n`);
      await command.shows(`you said ${word}\n`);
    }
    command.write("bye\n");
    expect(await command.result).toMatchObject({
      stdout: "you said one\nyou said two\n",
      stderr: "",
      exitCode: 7,
    });
  },
);
