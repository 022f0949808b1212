// SPDX-License-Identifier: Apache-2.0

/** What is left of a driver's sandboxes when the driver, or its backend, goes away and comes back. */
import { statSync } from "node:fs";
import { group } from "../../harness/conformance/check.ts";
import { holds, Refused, refuses, same } from "../../harness/conformance/finding.ts";
import { FrameCall } from "../../harness/conformance/frame-call.ts";
import { agree, becomes, Box } from "../../harness/conformance/trial.ts";
import { computeDriver } from "../../proto/contract.ts";

const check = group("K Restart and recovery");

check(
  "DC-109",
  "MUST",
  "A driver that was killed and is started again lists the sandboxes that it had, and stops, starts and deletes them",
  {
    source: "gateway 0.0.112, compute/mod.rs:2520",
    harm: "After a crash of the driver users' sandboxes are lost, or run on and cannot be deleted.",
  },
  async (trial) => {
    const process = await trial.startDriver();
    const made = await trial.running(trial.sandbox(), await process.answers(trial));
    await process.kill();

    const driver = await (await trial.startDriver(process.told)).answers(trial);
    const box = new Box(trial, made.asked, driver);
    const listed = await box.listed();
    holds(listed !== undefined, "the sandbox in ListSandboxes", "it is not there");
    agree("the listed snapshot", listed, await box.get());
    await box.stop();
    await box.start();
    same("deleted", await box.delete(), true);
  },
);

check(
  "DC-110",
  "SHOULD",
  "A driver that is ended and started again leaves running sandboxes running",
  {
    source: "Podman driver 0.0.112, driver.rs:1109; the Docker driver does the same",
    harm: "An update of the driver ends all that users run.",
  },
  async (trial) => {
    const process = await trial.startDriver();
    const driver = await process.answers(trial);
    const box = await trial.running(trial.sandbox(), driver);
    const before = await box.workload();
    driver.close();
    await process.signal("SIGTERM");
    await process.ended(10_000);

    const again = await (await trial.startDriver(process.told)).answers(trial);
    const after = await box.workload();
    same("whether it runs", after.running, true);
    same("when its compute was started", after.started, before.started);
    await again.delete(box);
  },
);

check(
  "DC-111",
  "MUST",
  "While the backend is gone the driver does not say that a sandbox is, and all is well when it is back",
  {
    source: "gateway 0.0.112, compute/mod.rs:3312 and 3170",
    harm: "A restart of the backend removes users' sandboxes from the gateway, while they run on.",
  },
  async (trial) => {
    const engine = await trial.engineProxy();
    const process = await trial.startDriver({ podman_socket: engine.socket });
    const driver = await process.answers(trial);
    const box = await trial.running(trial.sandbox(), driver);
    engine.close();
    // It may say that it cannot tell, or what it remembers; not that the sandbox is gone.
    const got = await box.get().catch(() => refuses(box.get(), ...CANNOT_TELL));
    if (!(got instanceof Refused)) same("the sandbox that it remembers", got.id, box.id);
    const listed = await box.listed().catch(() => refuses(driver.list(), ...CANNOT_TELL));
    holds(listed !== undefined, "the sandbox in ListSandboxes, or an error", "a list without it");

    await engine.listen();
    await box.up();
    holds((await box.listed()) !== undefined, "the sandbox in ListSandboxes", "it is not there");
  },
);

check(
  "DC-112",
  "SHOULD",
  "SIGTERM ends the driver within 5 s although a gateway watches",
  {
    source: "contract, WatchSandboxes: a watch stays open until the caller leaves",
    harm: "Every stop or update of the driver hangs until its service manager kills it, or the gateway is stopped first.",
  },
  async (trial) => {
    const process = await trial.startDriver();
    (await process.answers(trial)).close();
    // As a gateway: it leaves when the driver leaves, and not, as some libraries, when the driver asks it to.
    using watch = await FrameCall.watch(process.front);
    watch.read();
    await process.signal("SIGTERM");
    await process.ended(5_000);
  },
);

check(
  "DC-190",
  "SHOULD",
  "A create that is under way at SIGTERM is finished, or leaves nothing behind",
  {
    source: "gateway 0.0.112, compute/mod.rs:969",
    harm: "The gateway forgets the sandbox, and never deletes it: it runs for ever, and nobody sees it.",
  },
  async (trial) => {
    const list = trial.backend("list");
    const engine = await trial.engineProxy();
    const process = await trial.startDriver({ podman_socket: engine.socket });
    (await process.answers(trial)).close();
    const sandbox = trial.sandbox();
    await trial.forget(sandbox);
    engine.rules = [{ call: "*", hang: true }];
    const { requestSerialize } = computeDriver().ComputeDriver.service.CreateSandbox;
    using create = FrameCall.ask(process.socket, "CreateSandbox", requestSerialize({ sandbox }));
    await becomes(
      "a driver that asks its backend",
      () => engine.held > 0,
      () => "it does not",
    );
    await process.signal("SIGTERM");
    engine.rules = [];

    await becomes(
      "an end of the create",
      () => create.over,
      () => "none",
      15_000,
    );
    create.mustBeReadable();
    if (create.events.length > 0) return;
    await process.ended(15_000);
    same("what a failed create leaves", await list(sandbox.id), []);
  },
);

check(
  "DC-191",
  "SHOULD",
  "A driver that ends leaves the socket of its successor alone",
  {
    source: "gateway 0.0.112, compute/mod.rs:2533: it dials the same path for ever",
    harm: "After an update the new driver runs, and the gateway cannot reach it until somebody starts it once more.",
  },
  async (trial) => {
    const old = await trial.startDriver();
    (await old.answers(trial)).close();
    const first = fileAt(old.socket);
    const fresh = await trial.startDriver(old.told);
    const bound = () => fileAt(old.socket) !== undefined && fileAt(old.socket) !== first;
    const ended = async () => (await fresh.state()).ended !== undefined;
    await becomes(
      "a successor on the socket",
      async () => bound() || (await ended()),
      () => "the old one",
      30_000,
    );
    if (await ended()) trial.skip("a second driver does not start on a socket that is served");
    await old.signal("SIGTERM");
    await old.ended(5_000);
    await fresh.answers(trial, 3_000);
  },
);

/** How a driver says that it does not know. */
const CANNOT_TELL = ["INTERNAL", "UNAVAILABLE", "UNKNOWN", "ABORTED", "FAILED_PRECONDITION"];

/** Tells a file from another one that took its place, which may have its inode number. */
function fileAt(path: string): string | undefined {
  const file = statSync(path, { throwIfNoEntry: false });
  return file && `${file.ino} ${file.ctimeMs}`;
}
