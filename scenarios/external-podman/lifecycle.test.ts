// SPDX-License-Identifier: Apache-2.0

/** What may happen to a sandbox between its creation and its end. */
import { expect } from "bun:test";
import { eventually, phaseOf, refusal, Sandbox, scenario } from "../../harness.ts";
import { fileHolds, stays } from "./sandboxes.ts";

const NOT_READY = { code: "FAILED_PRECONDITION", message: "sandbox is not ready" };

// Stop and start

scenario("LC-01 a stopped sandbox starts with its id, workspace and environment", async ({ gateway }) => {
  const sandbox = await gateway.readySandbox({ environment: { COLOUR: "red" } });
  const { id } = sandbox;
  await sandbox.exec(["sh", "-c", "mkdir folder && echo content > folder/file"]);
  await sandbox.stop();
  expect(sandbox.phase).toBe("STOPPED");
  await (await sandbox.start()).ready();
  expect(sandbox.id).toBe(id);
  const { stdout } = await sandbox.exec(["sh", "-c", "cat folder/file; echo $COLOUR"]);
  expect(stdout).toBe("content\nred\n");
});

scenario("LC-02 a stopped sandbox is listed, runs no commands, and can be deleted", async ({ gateway }) => {
  const sandbox = await gateway.readySandbox();
  await sandbox.stop();
  expect(await gateway.listSandboxes()).toContain(sandbox.name);
  expect(await refusal(sandbox.exec(["true"]))).toEqual(NOT_READY);
  expect(await sandbox.delete()).toBe(true);
  expect(await gateway.listSandboxes()).not.toContain(sandbox.name);
});

scenario("LC-03 every start runs the main process anew in the same workspace", async ({ gateway }) => {
  const sandbox = await gateway.readySandbox({ command: stays("echo begun >> starts") });
  for (const round of [1, 2, 3]) {
    await sandbox.stop();
    await (await sandbox.start()).ready();
    await fileHolds(sandbox, "starts", "begun\n".repeat(1 + round));
  }
});

scenario("LC-04 to stop a stopped sandbox or start a running one is no error, and no work", async (given) => {
  const { stack, gateway } = given;
  const sandbox = await gateway.readySandbox();
  const since = await stack.lastCall();
  expect((await sandbox.start()).phase).toBe("READY");
  await sandbox.stop();
  expect((await sandbox.stop()).phase).toBe("STOPPED");
  const calls = (await stack.calls(since)).filter(({ request }) => isAbout(request, sandbox));
  expect(calls.map(({ method }) => method)).toEqual(["StopSandbox"]);
});

scenario("LC-05 the same request twice at once succeeds twice", async ({ gateway }) => {
  const sandbox = await gateway.readySandbox();
  const again = new Sandbox(gateway, sandbox.seen);
  await Promise.all([sandbox.stop(), again.stop()]);
  expect([sandbox.phase, again.phase]).toEqual(["STOPPED", "STOPPED"]);
  await Promise.all([sandbox.start(), again.start()]);
  await sandbox.ready();
  expect(await Promise.all([sandbox.delete(), again.delete()])).toEqual([true, true]);
});

scenario("LC-07 a command ends with its sandbox, and not as if it had succeeded", async ({ gateway }) => {
  const begun = async () => {
    const sandbox = await gateway.readySandbox();
    const command = sandbox.interact(["sh", "-c", "echo up; sleep 60"], { tty: false });
    await command.shows("up");
    return { sandbox, command };
  };
  const [stopped, deleted] = await Promise.all([begun(), begun()]);
  await Promise.all([stopped.sandbox.stop(), deleted.sandbox.delete()]);
  for (const { command } of [stopped, deleted]) {
    // A supervisor may have the time to say how the command ended; when it has not, the relay breaks.
    const end = command.result.then(({ exitCode }) => `exit code ${exitCode}`, String);
    expect(await end).toMatch(/^exit code [1-9]|UNAVAILABLE/);
  }
});

scenario("LC-08 a sandbox can be deleted as soon as its creation is accepted", async ({ gateway }) => {
  const sandbox = await gateway.createSandbox();
  expect(await sandbox.delete()).toBe(true);
  expect(await gateway.listSandboxes()).not.toContain(sandbox.name);
});

// Watch

scenario("LC-09 a watch begins with the sandbox as it is, and ends when it is gone", async ({ gateway }) => {
  const sandbox = await gateway.readySandbox();
  const phases: string[] = [];
  const watching = (async () => {
    for await (const { sandbox: seen } of sandbox.watch({ follow_status: true })) {
      if (seen && phaseOf(seen) !== phases.at(-1)) phases.push(phaseOf(seen));
    }
  })();
  // When something else fails first, the watch ends with its sandbox's stack, and that is no error of its own.
  watching.catch(() => {});
  await eventually(() => expect(phases).toEqual(["READY"]), { what: "the first event" });
  await sandbox.stop();
  await (await sandbox.start()).ready();
  await sandbox.delete();
  await watching;
  expect(phases).toEqual(["READY", "STOPPING", "STOPPED", "STARTING", "READY", "DELETING"]);
});

// Many

scenario("LC-10 eight sandboxes at once each have a life of their own", async ({ gateway }) => {
  const numbers = ["0", "1", "2", "3", "4", "5", "6", "7"];
  const sandboxes = await Promise.all(numbers.map((N) => gateway.readySandbox({ environment: { N } })));
  const answers = await Promise.all(sandboxes.map((sandbox) => sandbox.exec(["sh", "-c", "echo $N"])));
  expect(answers.map(({ stdout }) => stdout)).toEqual(numbers.map((n) => `${n}\n`));
  await Promise.all(sandboxes.map((sandbox) => sandbox.delete()));
  const left = await gateway.listSandboxes();
  for (const { name } of sandboxes) expect(left).not.toContain(name);
});

// Alone, for it holds up whatever is created at the time

scenario.alone(
  "LC-06 a sandbox that is still being made is neither stopped, started nor used",
  async (given) => {
    const { stack, gateway } = given;
    await stack.rules({ method: "CreateSandbox", times: 1, delayMs: 300 });
    const creation = gateway.createSandbox({ name: "in-the-making" });
    const stored = () => gateway.getSandbox("in-the-making");
    const sandbox = new Sandbox(gateway, await eventually(stored, { what: "the gateway knows the sandbox" }));
    const stop = { code: "FAILED_PRECONDITION", message: expect.stringContaining("must be Ready to stop") };
    const start = {
      code: "FAILED_PRECONDITION",
      message: expect.stringContaining("must be Stopped to start"),
    };
    expect(await refusal(sandbox.stop())).toEqual(stop);
    expect(await refusal(sandbox.start())).toEqual(start);
    expect(await refusal(sandbox.exec(["true"]))).toEqual(NOT_READY);
    await (await creation).ready();
  },
);

const isAbout = (request: unknown, { id }: Sandbox) => (request as { sandbox_id?: string }).sandbox_id === id;
