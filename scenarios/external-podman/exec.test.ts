// SPDX-License-Identifier: Apache-2.0

/** Commands in a sandbox: what goes in, what comes out, and how they end. */
import { expect } from "bun:test";
import { randomBytes } from "node:crypto";
import { refusal, scenario } from "../../harness.ts";
import { A_MOMENT, DIFFICULT_WORDS, invalid, printed } from "./sandboxes.ts";

// What comes out

scenario("EX-01 stdout and stderr arrive apart, byte by byte", async ({ anySandbox }) => {
  const sandbox = await anySandbox();
  const { bytes } = await sandbox.exec(["sh", "-c", "printf '\\377\\000out'; printf '\\200err' >&2"]);
  expect(bytes.stdout).toEqual(Buffer.from("\xff\x00out", "latin1"));
  expect(bytes.stderr).toEqual(Buffer.from("\x80err", "latin1"));
});

scenario("EX-02 megabytes of output are complete when the exit code arrives", async ({ anySandbox }) => {
  const sandbox = await anySandbox();
  const { bytes, exitCode } = await sandbox.exec([
    "sh",
    "-c",
    "head -c 3000000 /dev/urandom; echo; echo end",
  ]);
  expect(exitCode).toBe(0);
  expect(bytes.stdout).toHaveLength(3_000_005);
  expect(bytes.stdout.subarray(-5).toString()).toBe("\nend\n");
});

scenario("EX-03 the exit code is the command's own, and 1 after a signal", async ({ anySandbox }) => {
  const sandbox = await anySandbox();
  const ends = { "exit 0": 0, "exit 255": 255, "kill -KILL $$": 1, "kill -TERM $$": 1 };
  for (const [script, exitCode] of Object.entries(ends)) {
    expect(await sandbox.exec(["sh", "-c", `${A_MOMENT}; ${script}`])).toMatchObject({
      exitCode,
      stdout: "",
    });
  }
});

scenario("EX-04 a command that does not exist has exit code 127, and says so", async ({ anySandbox }) => {
  const sandbox = await anySandbox();
  const { exitCode, stderr } = await sandbox.exec(["no-such-command"]);
  expect(exitCode).toBe(127);
  expect(stderr).toContain("no-such-command");
});

scenario("EX-05 a command that is out of time has exit code 124, and its output so far", async (given) => {
  const sandbox = await given.anySandbox();
  const { exitCode, stdout } = await sandbox.exec(["sh", "-c", "echo begun; sleep 30"], {
    timeoutSeconds: 1,
  });
  expect({ exitCode, stdout }).toEqual({ exitCode: 124, stdout: "begun\n" });
});

scenario("EX-06 commands that run at once do not mix", async ({ anySandbox }) => {
  const sandbox = await anySandbox();
  // Each ends only when it has seen that all of them run.
  const script = "echo > here-$N; until set -- here-*; test $# = 12; do sleep 0.05; done; cat; exit $N";
  const run = (n: number) =>
    sandbox.exec(["sh", "-c", script], { stdin: `input ${n}`, environment: { N: String(n) } });
  const results = await Promise.all(Array.from({ length: 12 }, (_, n) => run(n)));
  for (const [n, result] of results.entries()) {
    expect(result).toMatchObject({ stdout: `input ${n}`, stderr: "", exitCode: n });
  }
});

// What goes in

scenario("EX-10 arguments and values in the environment arrive as they were sent", async ({ gateway }) => {
  const [OUTER, INNER] = ["$A 'b' \"c\" `d` \\ ü", " $A 'b' \"c\" `d` \\ = ü "];
  const sandbox = await gateway.readySandbox({ environment: { OUTER } });
  const show = ["sh", "-c", 'printf "<%s>" "$OUTER" "$INNER" "$@"', "show", ...DIFFICULT_WORDS];
  const { stdout } = await sandbox.exec(show, { environment: { INNER } });
  expect(stdout).toBe(printed(OUTER, INNER, ...DIFFICULT_WORDS));
});

scenario("EX-11 a command reads its input unchanged to the end, or an empty one", async ({ anySandbox }) => {
  const sandbox = await anySandbox();
  const megabyte = randomBytes(1_000_000);
  const { bytes } = await sandbox.exec(["cat"], { stdin: megabyte });
  expect(bytes.stdout.equals(megabyte)).toBe(true);
  expect(await sandbox.exec(["wc", "-c"])).toMatchObject({ stdout: "0\n" });
});

scenario("EX-12 a command's own environment wins over the sandbox's, once", async ({ gateway }) => {
  const template = { environment: { A: "template", B: "template", C: "template" } };
  const sandbox = await gateway.readySandbox({ template, environment: { A: "sandbox", B: "sandbox" } });
  const show = ["sh", "-c", "echo $A $B $C"];
  const { stdout } = await sandbox.exec(show, { environment: { A: "command" } });
  expect(stdout).toBe("command sandbox template\n");
  expect((await sandbox.exec(show)).stdout).toBe("sandbox sandbox template\n");
});

scenario("EX-13 a command runs in the workspace, or in the folder that it names", async ({ anySandbox }) => {
  const sandbox = await anySandbox();
  const { stdout: workspace } = await sandbox.exec(["sh", "-c", "mkdir 'sub folder' && pwd"]);
  const inside = await sandbox.exec(["pwd"], { workdir: "sub folder" });
  expect(inside.stdout).toBe(`${workspace.trimEnd()}/sub folder\n`);
  // Without its folder it does not run at all.
  const nowhere = await sandbox.exec(["echo", "ran"], { workdir: "no-such-folder" });
  expect(nowhere).toMatchObject({ stdout: "", stderr: expect.stringContaining("no-such-folder") });
  expect(nowhere.exitCode).not.toBe(0);
});

scenario("EX-14 a command that cannot be run as it was sent is refused", async ({ anySandbox }) => {
  const sandbox = await anySandbox();
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
  // A gateway reads messages of up to 1 MiB; gRPC libraries differ in the code for a larger one.
  const { code } = await refusal(sandbox.exec(["cat"], { stdin: new Uint8Array(1 << 20) }));
  expect(["OUT_OF_RANGE", "RESOURCE_EXHAUSTED"]).toContain(code);
});

// Terminals and conversations

scenario("EX-20 a command has a terminal when it asks for one, and else none", async ({ anySandbox }) => {
  const sandbox = await anySandbox();
  const look = [
    "sh",
    "-c",
    `for fd in 0 1 2; do test -t $fd && echo $fd; done; echo error >&2; ${A_MOMENT}; exit 5`,
  ];
  const piped = await sandbox.exec(look);
  expect(piped).toMatchObject({ stdout: "", stderr: "error\n", exitCode: 5 });
  // A terminal is one stream, and ends lines in its own way.
  const onTerminal = await sandbox.exec(look, { tty: true });
  expect(onTerminal).toMatchObject({ stdout: "0\r\n1\r\n2\r\nerror\r\n", stderr: "", exitCode: 5 });
});

scenario("EX-21 a terminal has the size of its window, and follows it", async ({ anySandbox }) => {
  const sandbox = await anySandbox();
  const script = "echo $TERM; stty size; read line; stty size; exit 4";
  const command = sandbox.interact(["sh", "-c", script], { cols: 100, rows: 33 });
  await command.shows("xterm-256color\r\n33 100\r\n");
  command.resize(132, 50);
  command.write("\n");
  expect(await command.result).toMatchObject({ stdout: expect.stringContaining("50 132"), exitCode: 4 });
});

scenario("EX-22 a terminal turns Ctrl-C into an interrupt", async ({ anySandbox }) => {
  const sandbox = await anySandbox();
  const wait = "trap 'echo interrupted; exit 6' INT; echo up; while :; do sleep 0.05; done";
  const command = sandbox.interact(["sh", "-c", wait]);
  await command.shows("up");
  command.write("\x03");
  expect(await command.result).toMatchObject({ stdout: expect.stringContaining("interrupted"), exitCode: 6 });
});

scenario("EX-23 without a terminal, a command answers while its input is open", async ({ anySandbox }) => {
  const sandbox = await anySandbox();
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
});
