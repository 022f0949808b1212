// SPDX-License-Identifier: Apache-2.0

/**
 * A driver that tells whatever it knows, wherever it can: `bun report/indiscreet.fixture.ts SOCKET TOKENS`. It prints each
 * sandbox's token in every encoding that logs are known to have, refuses the sandbox with an error that quotes token and
 * INDISCREET_VALUE, a variable that it was given, and mixes in what terminals and CI runners take for commands.
 */
import * as grpc from "@grpc/grpc-js";
import { appendFileSync } from "node:fs";
import { computeDriver } from "../../proto/contract.ts";
import type { ComputeDriverHandlers } from "../../proto/v0.0/types/openshell/compute/v1/ComputeDriver.ts";

/** What a terminal, a CI runner, Markdown or HTML would act upon. */
export const COMMANDS = [
  "\u001b]52;c;ZWNobyBvd25lZA==\u0007",
  "\u001b]8;;https://evil.example/\u001b\\click\u001b]8;;\u001b\\",
  "\u001b[2J\u009b31m",
  "\u202etxt.exe\u202c",
  "first\rsecond",
  "::stop-commands::pause",
  "  ::error file=a.ts,line=1::forged",
  "| ::warning::ERROR forged in what looks like a frame",
  "\u00a0::add-mask::pass",
  "said ##[error]forged",
  "##vso[task.complete result=Failed;]forged",
  "a | b ![image](https://evil.example/i.png) [link](https://evil.example/) @octocat <script>alert(1)</script> `code` $x$",
  "nul \u0000 and half \ud83d",
].join("\n");

/** A secret in all the ways in which a log may have it. */
export function encodings(secret: string): Record<string, string> {
  const bytes = Buffer.from(secret);
  const hex = bytes.toString("hex");
  const shifted = (by: number) => Buffer.concat([Buffer.from("ab".slice(0, by)), bytes]).toString("base64");
  const each = (write: (code: string) => string) => hex.match(/../g)!.map(write).join("");
  const middle = Math.floor(secret.length / 2);
  return {
    plain: secret,
    json: JSON.stringify({ token: secret }),
    base64: bytes.toString("base64"),
    base64url: bytes.toString("base64url"),
    "base64 after one byte": shifted(1),
    "base64 after two bytes": shifted(2),
    "base64 in lines": bytes.toString("base64").replace(/.{64}/g, "$&\n"),
    "lower-case hex": hex,
    "upper-case hex": hex.toUpperCase(),
    "percent-encoded dots": secret.replaceAll(".", "%2E"),
    "percent-encoded bytes": each((code) => `%${code}`),
    "escaped characters": each((code) => String.raw`\u00` + code),
    "escaped bytes": each((code) => String.raw`\x` + code),
    "a list of bytes": JSON.stringify([...bytes]),
    "split over lines": secret.replace(/.{7}/g, "$&\n"),
    "spaced out": [...secret].join(" "),
    "its second half": secret.slice(middle),
    coloured: `${secret.slice(0, middle)}\u001b[31m${secret.slice(middle)}\u001b[0m`,
  };
}

function serve(socket: string, tokens: string): void {
  const given = process.env.INDISCREET_VALUE ?? "";
  console.error(COMMANDS);
  const service = computeDriver().ComputeDriver.service;
  const refused = Object.keys(service).map((name) => [
    name,
    (_: unknown, reply: grpc.sendUnaryData<never>) =>
      reply({ code: grpc.status.NOT_FOUND, details: "nobody" }),
  ]);
  const handlers: Partial<ComputeDriverHandlers> = {
    GetCapabilities: (_, reply) =>
      reply(null, {
        driver_name: `in\u001b]0;discreet ${COMMANDS}`.toWellFormed(),
        driver_version: "1|2 @octocat",
      }),
    GetGatewayListenerRequirements: (_, reply) => reply(null, { requirements: [] }),
    ValidateSandboxCreate: (_, reply) => reply(null, {}),
    EnsureWorkspace: (_, reply) => reply(null, {}),
    ListSandboxes: (_, reply) => reply(null, { sandboxes: [] }),
    DeleteSandbox: (_, reply) => reply(null, { deleted: false }),
    WatchSandboxes: (call) => call.sendMetadata(new grpc.Metadata()),
    CreateSandbox: ({ request: { sandbox } }, reply) => {
      const token = sandbox?.spec?.sandbox_token ?? "";
      // For whoever looks for them afterwards.
      appendFileSync(tokens, `${token}\n`);
      for (const [name, text] of Object.entries({
        ...encodings(token),
        given: `${given} ${Buffer.from(given).toString("base64")}`,
      }))
        console.error(`${new Date().toISOString()} INFO ${name}: ${text}`);
      // Half a character cannot be sent as the details of a status.
      const details =
        `cannot use ${token}, ${Buffer.from(token).toString("hex")} or ${given}\n${COMMANDS}`.toWellFormed();
      reply({ code: grpc.status.INTERNAL, details });
    },
  };
  const server = new grpc.Server();
  server.addService(service, {
    ...Object.fromEntries(refused),
    ...handlers,
  } as grpc.UntypedServiceImplementation);
  process.umask(0o177);
  server.bindAsync(`unix:${socket}`, grpc.ServerCredentials.createInsecure(), () => {});
}

if (import.meta.main) serve(process.argv[2]!, process.argv[3]!);
