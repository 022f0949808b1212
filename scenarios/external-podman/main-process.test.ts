// SPDX-License-Identifier: Apache-2.0

/** The main process: the command for which a sandbox is made, and with whose end it ends. */
import { expect } from "bun:test";
import {
  eventually,
  type Gateway,
  refusal,
  type Sandbox,
  type SandboxOptions,
  scenario,
} from "../../harness.ts";
import { Attachment } from "./attachment.ts";
import { A_MOMENT, DIFFICULT_WORDS, fileHolds, invalid, printed, stays } from "./sandboxes.ts";

// What it gets

scenario("MP-01 the main process gets its arguments as they were sent", async ({ gateway }) => {
  const command = stays('printf "<%s>" "$@" > words', ...DIFFICULT_WORDS);
  const sandbox = await gateway.readySandbox({ command });
  await fileHolds(sandbox, "words", printed(...DIFFICULT_WORDS));
});

scenario("MP-02 the main process runs in the workspace, where commands run too", async ({ gateway }) => {
  const sandbox = await gateway.readySandbox({ command: stays("pwd > folder") });
  const { stdout: workspace } = await sandbox.exec(["pwd"]);
  await fileHolds(sandbox, "folder", workspace);
});

scenario("MP-03 the sandbox's environment wins over its template's in the main process", async (given) => {
  const sandbox = await given.gateway.readySandbox({
    command: stays('printf "<%s>" "$A" "$B" "$OPENSHELL_SANDBOX" > values'),
    template: { environment: { A: "template", B: " $A 'b' \\ = ü " } },
    environment: { A: "sandbox" },
  });
  // OPENSHELL_SANDBOX tells a process that it is in a sandbox.
  await fileHolds(sandbox, "values", printed("sandbox", " $A 'b' \\ = ü ", "1"));
});

/** Writes down which of its streams are terminals, and of which type and size they are. */
const LOOK = `for fd in 0 1 2; do test -t $fd && echo $fd >> seen; done
  echo $TERM >> seen; stty size >> seen 2> /dev/null`;

scenario("MP-04 the main process has a terminal when the sandbox asks for one", async ({ gateway }) => {
  const sandbox = await gateway.readySandbox({ command: stays(LOOK), tty: true });
  await fileHolds(sandbox, "seen", "0\n1\n2\nxterm-256color\n24 80\n");
});

scenario("MP-05 the main process has no terminal when the sandbox asks for none", async ({ gateway }) => {
  const sandbox = await gateway.readySandbox({ command: stays(LOOK), tty: false });
  await fileHolds(sandbox, "seen", "dumb\n");
});

scenario("MP-06 without a command, the main process is a login shell on a terminal", async ({ gateway }) => {
  const sandbox = await gateway.createSandbox({ command: [] });
  expect(sandbox.seen.spec).toMatchObject({ command: ["/bin/bash", "-l"], tty: true });
});

scenario("MP-07 a main process that cannot be run as it was sent is refused", async ({ gateway }) => {
  const line = { A: "line\nbreak" };
  const reserved = { OPENSHELL_SANDBOX_ID: "another" };
  const because = "keys starting with OPENSHELL_ are reserved; got 'OPENSHELL_SANDBOX_ID'";
  const wrong: [SandboxOptions, string][] = [
    [{ command: [""] }, "spec.command[0] must not be empty"],
    [{ environment: line }, "spec.environment value for 'A' contains newline or carriage return characters"],
    [{ environment: reserved }, `spec.environment ${because}`],
    [{ template: { environment: reserved } }, `spec.template.environment ${because}`],
  ];
  for (const [options, message] of wrong) {
    expect(await refusal(gateway.createSandbox(options))).toEqual(invalid(message));
  }
});

// How it ends

/** A sandbox that was Ready until its main process, told so, ran this script to its end. */
async function ended(gateway: Gateway, script: string): Promise<Sandbox> {
  const command = ["sh", "-c", `until test -e go; do sleep 0.05; done; ${script}`];
  const sandbox = await gateway.readySandbox({ command });
  // The end of the main process can cut off the very command that brings it about.
  await sandbox.exec(["sh", "-c", "echo > go"]).catch(() => {});
  return sandbox.reach("ERROR");
}

/** The status of a sandbox whose main process has ended. */
const mainProcessExited = (code: number) => ({
  phase: "SANDBOX_PHASE_ERROR",
  exit_code: code,
  conditions: [{ type: "Ready", status: "False", reason: "MainProcessExited" }],
});

scenario("MP-10 the main process ends its sandbox in Error, with the exit code", async ({ gateway }) => {
  const sandboxes = await Promise.all([ended(gateway, "exit 0"), ended(gateway, "exit 11")]);
  expect(sandboxes[0].seen.status).toMatchObject(mainProcessExited(0));
  expect(sandboxes[1].seen.status).toMatchObject(mainProcessExited(11));
});

scenario("MP-11 the exit code after a signal is 128 and the signal", async ({ gateway }) => {
  const sandbox = await ended(gateway, "kill -KILL $$");
  expect(sandbox.seen.status).toMatchObject(mainProcessExited(128 + 9));
});

scenario("MP-12 a main process can end before its sandbox was ever Ready", async ({ gateway }) => {
  const sandbox = await gateway.createSandbox({ command: ["sh", "-c", `${A_MOMENT}; exit 11`] });
  await sandbox.reach("ERROR");
  expect(sandbox.seen.status).toMatchObject(mainProcessExited(11));
});

scenario("MP-13 a main process that cannot be started has no exit code", async (given) => {
  const sandbox = await given.gateway.createSandbox({ command: ["no-such-command"] });
  await sandbox.reach("ERROR");
  expect(sandbox.seen.status?.exit_code).toBeUndefined();
});

scenario("MP-14 a sandbox whose main process has ended stays until it is deleted", async (given) => {
  const { gateway } = given;
  const sandbox = await ended(gateway, "exit 0");
  expect(await gateway.listSandboxes()).toContain(sandbox.name);
  const refused = (message: string) => ({ code: "FAILED_PRECONDITION", message });
  expect(await refusal(sandbox.exec(["true"]))).toEqual(refused("sandbox is not ready"));
  const stop = "sandbox must be Ready to stop (current phase: Error)";
  expect(await refusal(sandbox.stop())).toEqual(refused(stop));
  const start = "sandbox must be Stopped to start (current phase: Error)";
  expect(await refusal(sandbox.start())).toEqual(refused(start));
  expect(await sandbox.delete()).toBe(true);
});

// Who attaches to it

/** Answers each line that is typed. */
const ECHO = ["sh", "-c", 'echo begun; while read -r line; do echo "<$line>"; done; exec sleep 2147483'];

scenario("MP-20 who attaches sees what the main process printed before, and prints then", async (given) => {
  const command = stays("echo one; until test -e go; do sleep 0.05; done; echo two; echo three >&2");
  const sandbox = await given.gateway.readySandbox({ command });
  using first = await Attachment.open(sandbox);
  await first.shows("one\n");
  await sandbox.exec(["sh", "-c", "echo > go"]);
  await first.shows("one\ntwo\n");
  using second = await Attachment.open(sandbox);
  await second.shows("one\ntwo\n");
  await eventually(() => expect(first.errors).toContain("three\n"), { what: "the error output" });
});

scenario("MP-21 what who is attached types reaches the main process", async ({ gateway }) => {
  const sandbox = await gateway.readySandbox({ command: ECHO });
  using client = await Attachment.open(sandbox);
  client.type("hello\n");
  await client.shows("begun\n<hello>\n");
});

scenario("MP-22 one who is attached may type, the others are told that they only watch", async (given) => {
  const sandbox = await given.gateway.readySandbox({ command: ECHO });
  using owner = await Attachment.open(sandbox);
  using watcher = await Attachment.open(sandbox);
  const warning = "openshell: canonical main process already has an input owner; attached read-only\n";
  await eventually(() => expect(watcher.errors).toBe(warning), { what: "the warning" });
  watcher.type("from the watcher\n");
  owner.type("from the owner\n");
  await watcher.shows("<from the owner>\n");
  expect([owner.errors, watcher.output]).toEqual(["", "begun\n<from the owner>\n"]);
});

scenario("MP-23 who leaves with Ctrl-P Ctrl-Q leaves the main process to the next", async ({ gateway }) => {
  const sandbox = await gateway.readySandbox({ command: ECHO });
  using client = await Attachment.open(sandbox);
  client.type("one\n\x10\x11");
  await client.ended();
  expect(client.exitCode).toBe(0);
  using next = await Attachment.open(sandbox);
  next.type("two\n");
  await next.shows("<one>\n<two>\n");
  expect(next.errors).toBe("");
});

scenario("MP-24 who is attached sees the main process end, and with which code", async ({ gateway }) => {
  const command = ["sh", "-c", 'read -r line; echo "<$line>"; exit 7'];
  const sandbox = await gateway.readySandbox({ command });
  using client = await Attachment.open(sandbox);
  client.type("go\n");
  await client.ended();
  expect([client.output, client.exitCode]).toEqual(["<go>\n", 7]);
  await sandbox.reach("ERROR");
});
