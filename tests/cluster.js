// cluster.js PORT LOG POLICY: a web server of node's cluster, whose workers answer with their number and add what they have run
// to the log. POLICY: rr (the primary accepts, and passes each connection to a worker) or none (workers share the listener).
const cluster = require("cluster");
const fs = require("fs");
const http = require("http");

const [port, log, policy] = process.argv.slice(2);
cluster.schedulingPolicy = policy === "rr" ? cluster.SCHED_RR : cluster.SCHED_NONE;
if (cluster.isPrimary) {
  for (let i = 0; i < 4; i++) cluster.fork();
} else {
  const server = http.createServer({ keepAliveTimeout: 600000, requestTimeout: 0, headersTimeout: 0 }, (request, response) => {
    fs.appendFileSync(log, request.url + "\n");
    const body = String(process.pid);
    response.writeHead(200, { "Content-Length": body.length });
    response.end(body);
  });
  server.listen(Number(port), "0.0.0.0");
}
