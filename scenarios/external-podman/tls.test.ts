// SPDX-License-Identifier: Apache-2.0

/** A gateway with mutual TLS, its certificates from `openshell-gateway generate-certs`: who gets in, and who does not. */
import * as grpc from "@grpc/grpc-js";
import { expect } from "bun:test";
import { readFileSync } from "node:fs";
import { HarnessError, type RunningStack, scenario } from "../../harness.ts";
import type { Certificates } from "../../harness/client/endpoint.ts";
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
  const { cert, key } = await otherCertificates(stack);
  expect(await knock(stack, { ca, cert, key })).toBe("UNAVAILABLE");
});

scenario("TL-06 a client that trusts another CA refuses the gateway", async ({ sharedStack }) => {
  const stack = await sharedStack({ tls: true });
  const { cert, key } = certificatesOf(stack);
  const { ca } = await otherCertificates(stack);
  expect(await knock(stack, { ca, cert, key })).toBe("UNAVAILABLE");
});

scenario("TL-07 a client without TLS does not reach the API", async ({ sharedStack }) => {
  const stack = await sharedStack({ tls: true });
  // To callers on its own machine a gateway serves the web pages of sandboxes in plain HTTP on the same port, and
  // answers 404 to all else, which gRPC calls UNIMPLEMENTED.
  expect(await knock(stack)).toBeOneOf(["UNAVAILABLE", "UNIMPLEMENTED"]);
});

function certificatesOf({ info }: RunningStack): Certificates {
  if (!info.tls) throw new HarnessError("This stack has no TLS");
  return info.tls;
}

const others = new Map<number, Promise<Certificates>>();

/** Certificates like those of the stack, of a CA that it has never seen. The keeper makes them: keys must not outlive it. */
function otherCertificates({ info, keeper }: RunningStack): Promise<Certificates> {
  const known = others.get(info.id) ?? keeper.call("makeCertificates", info.id, "other-pki");
  others.set(info.id, known);
  return known;
}

/** Calls Health, for which a gateway asks no credentials beyond the handshake's. Resolves with the status' name. */
async function knock({ info }: RunningStack, certificates?: Partial<Certificates>): Promise<string> {
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
