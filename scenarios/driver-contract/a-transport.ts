// SPDX-License-Identifier: Apache-2.0

/** How a driver starts, where it serves, and that its transport is the one that a gateway dials. */
import { createServer, type RequestListener } from "node:http";
import {
  existsSync,
  lstatSync,
  mkdirSync,
  readFileSync,
  renameSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { basename, dirname, join } from "node:path";
import { group } from "../../harness/conformance/check.ts";
import { holds, refuses, same } from "../../harness/conformance/finding.ts";
import type { Ref } from "../../harness/conformance/driver.ts";
import { becomes, type Trial } from "../../harness/conformance/trial.ts";
import { field } from "../../harness/conformance/wire.ts";
import { shortCommand } from "../../harness/base/short-command.ts";

const check = group("A Transport and start-up");

check(
  "DC-1",
  "MUST",
  "The driver serves the contract over HTTP/2 cleartext on a Unix socket, whatever :authority a caller names",
  {
    source: "gateway 0.0.112, compute/mod.rs:3357",
    harm: "The gateway does not start: it dials the socket with an :authority that means nothing.",
  },
  async (trial) => {
    for (const authority of ["[::]:50051", "localhost", "driver.invalid:1"])
      await trial.connect(trial.subject.socket, authority).getCapabilities();
  },
);

check(
  "DC-2",
  "MUST",
  "A driver that was started answers within 30 s",
  {
    source: "gateway 0.0.112, compute/mod.rs:3353",
    harm: "The gateway, which is started at the same time, gives up and exits.",
    deadlineMs: 45_000,
  },
  async (trial) => {
    const process = await trial.startDriver();
    const driver = await process.answers(trial, 30_000);
    await driver.getCapabilities();
  },
);

check(
  "DC-3",
  "SHOULD",
  "The socket has mode 0600 and its folder 0700, and both belong to the user that runs the driver",
  {
    source: "drivers 0.0.112, external_driver_socket.rs:41; the VM driver does the same",
    harm: "Every user of the machine can make, stop and delete sandboxes.",
  },
  async ({ subject }) => {
    const seen = (path: string) => {
      const { mode, uid } = statSync(path);
      return { mode: (mode & 0o777).toString(8), uid };
    };
    const uid = process.geteuid?.();
    same("the socket", seen(subject.own.socket), { mode: "600", uid });
    same("its folder", seen(dirname(subject.own.socket)), { mode: "700", uid });
  },
);

check(
  "DC-4",
  "SHOULD",
  "Another user's process gets no answer on the socket",
  {
    source: "drivers 0.0.112, external_driver_socket.rs:96; the VM driver does the same",
    harm: "Every user of the machine can make, stop and delete sandboxes.",
  },
  async (trial) => {
    if (process.geteuid?.() !== 0) trial.skip("only root can start a process of another user");
    const { socket } = trial.subject.own;
    // It stands in the folder already, so that what hides the folder itself proves nothing.
    const intruder = [process.execPath, OTHER_USER, basename(socket)];
    const { stdout, stderr } = await shortCommand(intruder, { cwd: dirname(socket) });
    const got = stdout.toString();
    if (!got) throw new Error(`the other user's process said nothing: ${stderr}`);
    holds(/^(a closed connection|E[A-Z]+)$/.test(got.trim()), "a refused or closed connection", got);
  },
);

check(
  "DC-5",
  "SHOULD",
  "A driver replaces the socket that an earlier one left behind",
  {
    source: "drivers 0.0.112, external_driver_socket.rs:44; the VM driver does the same",
    harm: "After a crash the driver does not start again until somebody removes its socket by hand.",
  },
  async (trial) => {
    const socket = join(trial.folder(), "driver.sock");
    leaveStaleSocket(socket);
    const process = await trial.startDriver({ socket });
    await process.answers(trial);
  },
);

check(
  "DC-6",
  "SHOULD",
  "A driver refuses to start where its socket's path is a file or a symlink, or its folder a symlink, and touches neither",
  {
    source: "drivers 0.0.112, external_driver_socket.rs:26; the VM driver does the same",
    harm: "A wrong path costs somebody a file, or lets another user put the socket where he wants it.",
  },
  async (trial) => {
    const folder = trial.folder();
    const at = (name: string) => join(folder, name);
    writeFileSync(at("file"), "somebody's");
    symlinkSync(at("file"), at("link"));
    mkdirSync(at("elsewhere"), { mode: 0o700 });
    symlinkSync(at("elsewhere"), at("folder"));

    const refused = async (socket: string) => {
      const process = await trial.startDriver({ socket });
      const end = await process.ended(10_000);
      holds(/^exit code [1-9]/.test(end), `a failure on ${basename(socket)}`, end);
    };
    const started = [refused(at("file")), refused(at("link")), refused(at("folder/driver.sock"))];
    const [first] = (await Promise.allSettled(started)).filter(({ status }) => status === "rejected");
    holds(lstatSync(at("file")).isFile(), "the file, untouched", "something else");
    same("the file", readFileSync(at("file"), "utf8"), "somebody's");
    same("what is a symlink still", lstatSync(at("link")).isSymbolicLink(), true);
    same("a socket behind the folder's symlink", existsSync(at("elsewhere/driver.sock")), false);
    if (first) throw (first as PromiseRejectedResult).reason;
  },
);

check(
  "DC-7",
  "SHOULD",
  "A driver without clients that is sent SIGTERM or SIGINT removes its socket and ends",
  {
    source: "drivers 0.0.112, external_driver_socket.rs:67",
    harm: "Whoever waits for the socket takes a driver that is gone for one that is ready.",
  },
  async (trial) => {
    const endedBy = async (signal: NodeJS.Signals) => {
      const process = await trial.startDriver();
      (await process.answers(trial)).close();
      await process.signal(signal);
      same(`the end by ${signal}`, await process.ended(5_000), "exit code 0");
      same(`a socket after ${signal}`, existsSync(process.socket), false);
    };
    await Promise.all([endedBy("SIGTERM"), endedBy("SIGINT")]);
  },
);

check(
  "DC-8",
  "SHOULD",
  "The socket appears only when the driver has reached its backend",
  {
    source: "Podman driver 0.0.112, main.rs:187; the Docker driver does the same",
    harm: "The gateway starts on a driver that cannot do anything yet, and the first sandboxes fail.",
  },
  async (trial) => {
    const engine = await trial.engineProxy();
    engine.rules = [{ call: "*", hang: true }];
    const process = await trial.startDriver({ podman_socket: engine.socket });
    await becomes(
      "a driver that asks its backend",
      () => engine.held > 0,
      () => "it does not",
      15_000,
    );
    same("a socket while the backend does not answer", existsSync(process.socket), false);

    engine.rules = [];
    await process.answers(trial);
  },
);

check(
  "DC-9",
  "SHOULD",
  "A driver whose backend cannot be used ends with an error, and says what the backend said",
  {
    source: "Podman driver 0.0.112, driver.rs:338; the Docker driver does the same",
    harm: "Nobody learns why sandboxes cannot be made: the driver hangs, or serves and fails every call.",
  },
  async (trial) => {
    const socket = await brokenBackend(trial);
    const process = await trial.startDriver({ podman_socket: socket });
    const end = await process.ended(30_000);
    holds(/^exit code [1-9]/.test(end), "a failure", end);
    const { tail } = await process.state();
    holds(tail.includes(BACKEND_PROBLEM), `a log that says "${BACKEND_PROBLEM}"`, tail || "an empty log");
  },
);

check(
  "DC-10",
  "MUST",
  "Calls are answered side by side: many at a time, on several connections, and while a watch is open",
  {
    source: "gateway 0.0.112, compute/mod.rs:88 and 2520",
    harm: "A gateway keeps a watch open all the time and stops 16 sandboxes at once: every other user's call hangs.",
  },
  async (trial) => {
    const connections = [trial.driver, trial.connect()];
    const watches = connections.map((driver) => driver.watch());
    const calls = connections.flatMap((driver) => [
      driver.list(),
      driver.getCapabilities(),
      ...Array.from({ length: 12 }, () => refuses(driver.stop(nobody()), "NOT_FOUND")),
    ]);
    await Promise.all(calls);
    for (const { ended } of watches) same("the watch's end", ended, undefined);
  },
);

check(
  "DC-11",
  "MUST",
  "Fields and metadata of a later contract are ignored",
  {
    source: "contract, DriverSandbox; gateway 0.0.112, compute/mod.rs:9045",
    harm: "A gateway that is one version ahead of the driver cannot make a sandbox.",
  },
  async (trial) => {
    const later = field(1_900, "a field of a later contract");
    const { id, name, spec } = trial.sandbox();
    const image = field(1, spec?.template?.image ?? "");
    const sandbox = [
      field(1, id),
      field(2, name),
      field(4, field(6, image, later), later),
      field(6, "default"),
    ];
    const metadata = { "x-later": "text", "x-later-bin": Buffer.from([0, 255]) };
    await trial.driver.send(
      "ValidateSandboxCreate",
      Buffer.concat([field(1, ...sandbox, later), later]),
      metadata,
    );
    await trial.driver.send("ListSandboxes", later, metadata);
  },
);

const OTHER_USER = join(import.meta.dir, "..", "..", "harness", "conformance", "other-user.ts");

/** A sandbox that no driver knows. */
const nobody = (): Ref => ({ id: crypto.randomUUID(), name: "nobody" });

/** A socket on which nobody listens, as a driver leaves it that was killed. */
function leaveStaleSocket(path: string): void {
  const listener = Bun.listen({ unix: `${path}.live`, socket: { data() {} } });
  renameSync(`${path}.live`, path);
  listener.stop(true);
}

const BACKEND_PROBLEM = "the storage is damaged";

/** A Podman that lives, and can do nothing. */
async function brokenBackend(trial: Trial): Promise<string> {
  const socket = join(trial.folder(), "engine.sock");
  const answer: RequestListener = ({ url }, response) => {
    if (url?.endsWith("/_ping")) return void response.setHeader("Libpod-API-Version", "5.4.2").end("OK");
    const body = { cause: BACKEND_PROBLEM, message: BACKEND_PROBLEM, response: 500 };
    response.writeHead(500, { "content-type": "application/json" }).end(JSON.stringify(body));
  };
  const server = createServer(answer);
  await new Promise<void>((resolve, reject) => server.once("error", reject).listen(socket, resolve));
  trial.defer(() => {
    server.closeAllConnections();
    server.close();
  });
  return socket;
}
