-- Workers: their leases, their inboxes, and the prefixes that they have cached.

-- A request that a worker works on weighs as much as this many bytes of a prompt that another one would have to compute: about a prompt of
-- 64 tokens. So a prefix that everybody shares is soon cached by every worker.
local LOAD_BYTES = 256

-- An entry of `prefixes`: a digest, and how many bytes of the prompt it stands for (big-endian).
local DIGEST_BYTES = 8
local ENTRY_BYTES = 12

local function has_lease(worker)
  return redis.call("EXISTS", K .. ":worker:" .. worker) == 1
end

local function send(worker, message)
  redis.call("RPUSH", K .. ":inbox:" .. worker, message)
  redis.call("PEXPIRE", K .. ":inbox:" .. worker, INBOX_MS)
end

local function digest_at(prefixes, entry)
  local before = (entry - 1) * ENTRY_BYTES
  return string.sub(prefixes, before + 1, before + DIGEST_BYTES)
end

-- How many bytes of a prompt's beginning the worker has cached. A worker that has a prefix has the shorter ones too.
local function held_bytes(worker, prefixes)
  local longest, above = 0, #prefixes / ENTRY_BYTES + 1
  while above - longest > 1 do
    local middle = math.floor((longest + above) / 2)
    if redis.call("SISMEMBER", K .. ":held:" .. worker, digest_at(prefixes, middle)) == 1 then
      longest = middle
    else
      above = middle
    end
  end
  return longest > 0 and struct.unpack(">I4", prefixes, (longest - 1) * ENTRY_BYTES + DIGEST_BYTES + 1) or 0
end

local function hold(worker, prefixes, ttl_ms)
  local held = K .. ":held:" .. worker
  for entry = 1, #prefixes / ENTRY_BYTES do
    redis.call("SADD", held, digest_at(prefixes, entry))
  end
  redis.call("PEXPIRE", held, ttl_ms)
end

local function load_of(worker)
  return redis.call("SCARD", K .. ":claims:" .. worker) * LOAD_BYTES
end

-- Wakes the idle worker with the least to do, for this request and for those that it has. -> whether there was one
local function wake(version, message, prefixes)
  local idle = K .. ":idle:" .. version
  local best, least = nil, math.huge
  for _, worker in ipairs(redis.call("SMEMBERS", idle)) do
    if not has_lease(worker) then
      redis.call("SREM", idle, worker)
    else
      local burden = load_of(worker) - held_bytes(worker, prefixes)
      if burden < least then
        best, least = worker, burden
      end
    end
  end
  if not best then
    return false
  end
  redis.call("SREM", idle, best)
  send(best, message)
  return true
end

local function set_free_slots(version, worker, free)
  redis.call("HSET", K .. ":serving:" .. version, worker, free)
  redis.call("PEXPIRE", K .. ":serving:" .. version, INBOX_MS)
end

-- The reports under `key .. ":" .. worker`, of workers whose report is still there.
local function reports_of(workers, key)
  local reports = {}
  for _, worker in ipairs(workers) do
    local report = redis.call("GET", key .. ":" .. worker)
    if report then
      reports[#reports + 1] = report
    end
  end
  return reports
end

-- worker, version, report, lease_ms, wake (a message), free (slots; nil if it claims nothing): extends the worker's lease.
-- A Wake is lost if the worker that it was sent to dies. So a report also wakes its worker if requests wait.
function commands.report(a)
  if a.free then
    set_free_slots(a.version, a.worker, a.free)
  else
    redis.call("HDEL", K .. ":serving:" .. a.version, a.worker)
  end
  redis.call("SET", K .. ":worker:" .. a.worker, a.report, "PX", a.lease_ms)
  redis.call("ZADD", K .. ":workers", now_ms() + a.lease_ms, a.worker)
  local waiting = redis.call("ZCARD", K .. ":arrived:" .. a.version)
  if a.free and a.free > 0 and waiting > 0 and redis.call("LLEN", K .. ":inbox:" .. a.worker) == 0 then
    send(a.worker, a.wake)
  end
  return 1
end

-- worker, version, crashed: ends the lease now. The requests that it holds are lost from now on.
function commands.leave(a)
  local worker = a.worker
  if a.crashed then
    redis.call("SET", K .. ":crashed:" .. worker, "", "PX", INBOX_MS)
  end
  local report = redis.call("GET", K .. ":worker:" .. worker)
  if report then
    redis.call("SET", K .. ":departed:" .. worker, report, "PX", DEPARTED_MS)
    redis.call("ZADD", K .. ":departed", now_ms(), worker)
    redis.call("PEXPIRE", K .. ":departed", DEPARTED_MS)
  end
  redis.call("DEL", K .. ":worker:" .. worker, K .. ":inbox:" .. worker, K .. ":held:" .. worker)
  redis.call("SREM", K .. ":idle:" .. a.version, worker)
  redis.call("HDEL", K .. ":serving:" .. a.version, worker)
  redis.call("ZADD", K .. ":workers", 0, worker)
  return 1
end

-- -> the reports of the workers that have a lease
function commands.workers()
  return reports_of(redis.call("ZRANGEBYSCORE", K .. ":workers", now_ms(), "+inf"), K .. ":worker")
end

-- -> the last reports of the workers that left within DEPARTED_MS
function commands.departed()
  redis.call("ZREMRANGEBYSCORE", K .. ":departed", "-inf", now_ms() - DEPARTED_MS)
  return reports_of(redis.call("ZRANGE", K .. ":departed", 0, -1), K .. ":departed")
end

-- workers -> those whose processes ended by their own fault
function commands.crashed(a)
  local crashed = {}
  for _, worker in ipairs(a.workers) do
    if redis.call("EXISTS", K .. ":crashed:" .. worker) == 1 then
      crashed[#crashed + 1] = worker
    end
  end
  return crashed
end
