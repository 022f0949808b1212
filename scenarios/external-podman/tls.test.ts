// SPDX-License-Identifier: Apache-2.0

/** A gateway with mutual TLS, its certificates from `openshell-gateway generate-certs`: who gets in, and who does not. */
import * as grpc from "@grpc/grpc-js";
import { expect } from "bun:test";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { HarnessError, parts, type RunningStack, scenario } from "../../harness.ts";
import { type CallError, codeName, openshell, unary } from "../../proto/contract.ts";
import { environmentOf, inspect, withoutPodmanDriver } from "./given.ts";

scenario("TL-01 over mTLS a sandbox becomes Ready and runs commands", async ({ sharedStack }) => {
  const { gateway, info } = await sharedStack({ tls: true });
  expect(info.endpoint).toStartWith("https://");
  const sandbox = await gateway.readySandbox();
  expect(await sandbox.exec(["echo", "safe"])).toMatchObject({ stdout: "safe\n", exitCode: 0 });
});

scenario(
  "TL-02 a sandbox is told to call back over TLS",
  async ({ sharedStack }) => {
    const stack = await sharedStack({ tls: true });
    const sandbox = await stack.gateway.readySandbox();
    const environment = environmentOf(await inspect(stack, sandbox.id));
    expect(environment.OPENSHELL_ENDPOINT).toStartWith("https://");
    const { OPENSHELL_TLS_CA, OPENSHELL_TLS_CERT, OPENSHELL_TLS_KEY } = environment;
    for (const file of [OPENSHELL_TLS_CA, OPENSHELL_TLS_CERT, OPENSHELL_TLS_KEY])
      expect(file).toStartWith("/");
  },
  { skip: withoutPodmanDriver },
);

scenario("TL-03 a client with a certificate of the gateway's CA gets in", async ({ sharedStack }) => {
  const stack = await sharedStack({ tls: true });
  expect(await knock(stack, certificatesOf(stack))).toBe("OK");
});

scenario("TL-04 a client without a certificate is refused", async ({ sharedStack }) => {
  const stack = await sharedStack({ tls: true });
  const { ca } = certificatesOf(stack);
  expect(await knock(stack, { ca })).toBe("UNAVAILABLE");
});

scenario("TL-05 a client with a certificate of another CA is refused", async ({ sharedStack }) => {
  const stack = await sharedStack({ tls: true });
  const { ca } = certificatesOf(stack);
  const { cert, key } = otherCertificates(stack);
  expect(await knock(stack, { ca, cert, key })).toBe("UNAVAILABLE");
});

scenario("TL-06 a client that trusts another CA refuses the gateway", async ({ sharedStack }) => {
  const stack = await sharedStack({ tls: true });
  const { cert, key } = certificatesOf(stack);
  const { ca } = otherCertificates(stack);
  expect(await knock(stack, { ca, cert, key })).toBe("UNAVAILABLE");
});

scenario("TL-07 a client without TLS does not reach the API", async ({ sharedStack }) => {
  const stack = await sharedStack({ tls: true });
  // To callers on its own machine a gateway serves the web pages of sandboxes in plain HTTP on the same port, and
  // answers 404 to all else, which gRPC calls UNIMPLEMENTED.
  expect(await knock(stack)).toBeOneOf(["UNAVAILABLE", "UNIMPLEMENTED"]);
});

interface Certificates {
  ca: string;
  cert?: string;
  key?: string;
}

function certificatesOf({ info }: RunningStack): Required<Certificates> {
  if (!info.tls) throw new HarnessError("This stack has no TLS");
  return info.tls;
}

/** Certificates like those of the stack, of a CA that it has never seen. */
function otherCertificates({ info }: RunningStack): Required<Certificates> {
  const folder = join(info.folder, "other-pki");
  if (!existsSync(folder)) {
    const make = [...parts().gateway.command, "generate-certs", "--output-dir", folder];
    const env = { PATH: process.env.PATH ?? "", HOME: folder, XDG_CONFIG_HOME: folder };
    const made = Bun.spawnSync(make, { env, timeout: 15_000 });
    if (!made.success) throw new HarnessError(`generate-certs: exit code ${made.exitCode}: ${made.stderr}`);
  }
  const file = (name: string) => join(folder, name);
  return { ca: file("ca.crt"), cert: file("client/tls.crt"), key: file("client/tls.key") };
}

/** Calls Health, for which a gateway asks no credentials beyond the handshake's. Resolves with the status' name. */
async function knock({ info }: RunningStack, certificates?: Certificates): Promise<string> {
  const read = (file?: string) => (file ? readFileSync(file) : null);
  const credentials = certificates
    ? grpc.credentials.createSsl(read(certificates.ca), read(certificates.key), read(certificates.cert))
    : grpc.credentials.createInsecure();
  const client = new (openshell().OpenShell)(info.endpoint.replace(/^https:\/\//, ""), credentials, {
    "grpc.ssl_target_name_override": "localhost",
    "grpc.default_authority": "localhost",
  });
  try {
    await unary(client, client.Health, {}, { deadlineMs: 3_000 });
    return "OK";
  } catch (error) {
    return codeName((error as CallError).code);
  } finally {
    client.close();
  }
}
