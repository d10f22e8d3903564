--[[
The queue of requests: every change to it is one call of this script, so each is atomic.

Keys, all under one prefix (K below, KEYS[1] in the script; one Redis, not a Redis Cluster):

  K:queue:<version>      sorted set   waiting request ids by virtual start time (start-time fair queueing)
  K:waiting:<version>:<caller>  sorted set  the same, of one caller
  K:request:<id>         hash         payload, version, gateway, caller, start, cost, epoch; once claimed: worker, claim;
                                             once requeued: resumption (what the client has)
  K:vtime:<version>      string       the version's virtual time: the start tag of the request claimed last
  K:finish:<version>     hash         caller -> virtual finish time of that caller's newest request
  K:idle:<version>       set          workers that found nothing to claim and wait for a Wake in their inbox
  K:inbox:<worker>       list         Cancel and Wake messages for one worker; it expires INBOX_MS after the newest
  K:claims:<worker>      set          ids of the requests that the worker has claimed
  K:worker:<worker>      string       the worker's last WorkerReport; it expires with the lease
  K:workers              sorted set   workers by the time (ms) at which their lease ends
  K:demand               set          versions that have been asked for
  K:demand:<version>     hash         used_at (ms), keep_alive_ms (negative: for ever; absent: the platform's default)
  K:signal               channel      "demand": the registry may have to load something; "registry": its rows changed

Times are Redis's own, in milliseconds. Virtual times count tokens: a request's start tag is the later of the version's
virtual time and its caller's last finish tag, and its finish tag lies `cost` tokens after that, so that callers with
waiting requests advance evenly whatever their number of requests (Goyal, Vin, Cheng: Start-Time Fair Queueing, 1996).
A caller that gets tokens back (settle, cancel) does not overtake its own waiting requests with them.

Whatever a crash could leave behind expires: K:demand alone does not, which `forget` clears, and K:workers, which `lost` does.
]]

local K = KEYS[1]
local command = ARGV[1]

local INBOX_MS = 60000

local function now_ms()
  local t = redis.call("TIME")
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- Lua's own tostring() keeps 14 digits; a double needs 17.
local function exact(number)
  return string.format("%.17g", number)
end

local function number_or(value, default)
  return value and tonumber(value) or default
end

local function has_lease(worker)
  return redis.call("EXISTS", K .. ":worker:" .. worker) == 1
end

local function tell(worker, message)
  redis.call("RPUSH", K .. ":inbox:" .. worker, message)
  redis.call("PEXPIRE", K .. ":inbox:" .. worker, INBOX_MS)
end

local function wake(version, message)
  local worker = redis.call("SPOP", K .. ":idle:" .. version)
  while worker do
    if has_lease(worker) then
      tell(worker, message)
      return true
    end
    worker = redis.call("SPOP", K .. ":idle:" .. version)
  end
  return false
end

local function touch(version, keep_alive_ms)
  redis.call("SADD", K .. ":demand", version)
  redis.call("HSET", K .. ":demand:" .. version, "used_at", now_ms())
  if keep_alive_ms ~= "" then
    redis.call("HSET", K .. ":demand:" .. version, "keep_alive_ms", keep_alive_ms)
  end
end

local function add(id, version, caller, start, ttl_ms, message)
  for _, key in ipairs({ K .. ":queue:" .. version, K .. ":waiting:" .. version .. ":" .. caller }) do
    redis.call("ZADD", key, start, id)
    redis.call("PEXPIRE", key, ttl_ms)
  end
  if not wake(version, message) then
    redis.call("PUBLISH", K .. ":signal", "demand")
  end
end

local function remove(id, version, caller)
  redis.call("ZREM", K .. ":waiting:" .. version .. ":" .. caller, id)
  return redis.call("ZREM", K .. ":queue:" .. version, id) == 1
end

local function charge(version, caller, tokens)
  local finish = redis.call("HGET", K .. ":finish:" .. version, caller)
  if finish then
    redis.call("HSET", K .. ":finish:" .. version, caller, exact(tonumber(finish) + tokens))
  end
end

-- The start tag behind which a caller's next request has to stay: one float after its last waiting one.
local function behind_own(version, caller)
  local last = redis.call("ZREVRANGE", K .. ":waiting:" .. version .. ":" .. caller, 0, 0, "WITHSCORES")
  local start = number_or(last[2], -1)
  return start + math.max(start, 1) * 2 ^ -52
end

if command == "enqueue" then
  -- id, version, gateway, caller, payload, cost, limit, keep_alive_ms or "", ttl_ms, wake message
  -- -> {1, requests now waiting}, or {0, requests waiting} where the queue is full
  local id, version, gateway, caller, payload = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
  local cost, limit, keep_alive_ms, ttl_ms, message = tonumber(ARGV[7]), tonumber(ARGV[8]), ARGV[9], ARGV[10], ARGV[11]
  local finish = K .. ":finish:" .. version
  local depth = redis.call("ZCARD", K .. ":queue:" .. version)
  if depth >= limit then
    return { 0, depth }
  end
  touch(version, keep_alive_ms)
  local virtual = number_or(redis.call("GET", K .. ":vtime:" .. version), 0)
  local earliest = math.max(virtual, number_or(redis.call("HGET", finish, caller), 0))
  local start = math.max(earliest, behind_own(version, caller))
  redis.call("HSET", finish, caller, exact(earliest + cost))
  redis.call("PEXPIRE", finish, ttl_ms)
  redis.call("PEXPIRE", K .. ":vtime:" .. version, ttl_ms)
  redis.call("HSET", K .. ":request:" .. id, "payload", payload, "version", version, "gateway", gateway,
    "caller", caller, "start", exact(start), "cost", exact(cost), "epoch", 0)
  redis.call("PEXPIRE", K .. ":request:" .. id, ttl_ms)
  add(id, version, caller, exact(start), ttl_ms, message)
  return { 1, depth + 1 }

elseif command == "claim" then
  -- version, worker, capacity, ttl_ms, claim (names this call), repeated (1: its answer may have been lost, give it again)
  -- -> up to `capacity` times id, epoch, payload, resumption or "", flat.
  -- A worker that gets fewer than it asked for is idle from now on and will be woken. One without a lease gets nothing:
  -- what it took could not be seen as lost.
  local version, worker, capacity, ttl_ms, claim, repeated = ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5], ARGV[6], ARGV[7]
  local claims = K .. ":claims:" .. worker
  local claimed = {}
  local function give(id, epoch, payload, resumption)
    claimed[#claimed + 1] = id
    claimed[#claimed + 1] = tonumber(epoch)
    claimed[#claimed + 1] = payload
    claimed[#claimed + 1] = resumption or ""
  end
  if repeated == "1" then
    for _, id in ipairs(redis.call("SMEMBERS", claims)) do
      local field = redis.call("HMGET", K .. ":request:" .. id, "epoch", "payload", "claim", "resumption")
      if field[3] == claim then
        give(id, field[1], field[2], field[4])
      end
    end
  end
  if not has_lease(worker) then
    return claimed
  end
  while #claimed < 4 * capacity do
    local popped = redis.call("ZPOPMIN", K .. ":queue:" .. version)
    if #popped == 0 then
      redis.call("SADD", K .. ":idle:" .. version, worker)
      redis.call("PEXPIRE", K .. ":idle:" .. version, ttl_ms)
      return claimed
    end
    local id, start = popped[1], tonumber(popped[2])
    local request = K .. ":request:" .. id
    local field = redis.call("HMGET", request, "payload", "caller", "resumption")
    if field[1] then -- the record may have expired while the request waited
      remove(id, version, field[2])
      redis.call("HSET", request, "worker", worker, "claim", claim)
      redis.call("SADD", claims, id)
      redis.call("PEXPIRE", claims, ttl_ms)
      local virtual = number_or(redis.call("GET", K .. ":vtime:" .. version), 0)
      redis.call("SET", K .. ":vtime:" .. version, exact(math.max(virtual, start)), "PX", ttl_ms)
      give(id, redis.call("HINCRBY", request, "epoch", 1), field[1], field[3])
    end
  end
  redis.call("SREM", K .. ":idle:" .. version, worker)
  return claimed

elseif command == "settle" then
  -- id, epoch, actual cost -> 1, or 0 where the request is unknown or a later claim superseded this one
  local id, epoch, actual = ARGV[2], ARGV[3], tonumber(ARGV[4])
  local request = K .. ":request:" .. id
  local field = redis.call("HMGET", request, "version", "caller", "cost", "epoch", "worker")
  if field[4] ~= epoch then
    return 0
  end
  local version, caller, cost, worker = field[1], field[2], tonumber(field[3]), field[5]
  charge(version, caller, actual - cost)
  if worker then
    redis.call("SREM", K .. ":claims:" .. worker, id)
  end
  remove(id, version, caller)
  redis.call("DEL", request)
  touch(version, "")
  return 1

elseif command == "cancel" then
  -- id, cancel message -> "waiting" (it has left the queue), "claimed" (its worker was told), or "gone"
  local id, message = ARGV[2], ARGV[3]
  local request = K .. ":request:" .. id
  local field = redis.call("HMGET", request, "version", "worker", "caller", "cost")
  if not field[1] then
    return "gone"
  end
  if remove(id, field[1], field[3]) then
    charge(field[1], field[3], -tonumber(field[4]))
    redis.call("DEL", request)
    return "waiting"
  end
  tell(field[2], message)
  return "claimed"

elseif command == "requeue" then
  -- id, epoch, ttl_ms, wake message, resumption or "" -> 1, or 0 where the claim of that epoch is no longer the current one.
  -- The request goes back to its old place, and its epoch rises so that the lost worker's late frames are dropped.
  local id, epoch, ttl_ms, message, resumption = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
  local request = K .. ":request:" .. id
  local field = redis.call("HMGET", request, "version", "start", "epoch", "worker", "caller")
  if field[3] ~= epoch or not field[4] then
    return 0
  end
  redis.call("HINCRBY", request, "epoch", 1)
  redis.call("HDEL", request, "worker", "claim")
  redis.call("HSET", request, "resumption", resumption)
  redis.call("SREM", K .. ":claims:" .. field[4], id)
  add(id, field[1], field[5], field[2], ttl_ms, message)
  return 1

elseif command == "report" then
  -- worker, report, ttl_ms, version, wake message or "" where it could not claim: extends the worker's lease.
  -- A Wake is lost with the worker that it went to, so each report also wakes the one that it comes from if requests wait.
  local worker, report, ttl_ms, version, message = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
  redis.call("SET", K .. ":worker:" .. worker, report, "PX", ttl_ms)
  redis.call("ZADD", K .. ":workers", now_ms() + ttl_ms, worker)
  if message ~= "" and redis.call("ZCARD", K .. ":queue:" .. version) > 0
    and redis.call("LLEN", K .. ":inbox:" .. worker) == 0 then
    tell(worker, message)
  end
  return 1

elseif command == "leave" then
  -- worker, version: ends the lease now; what it still holds becomes lost at once
  local worker, version = ARGV[2], ARGV[3]
  redis.call("DEL", K .. ":worker:" .. worker, K .. ":inbox:" .. worker)
  redis.call("SREM", K .. ":idle:" .. version, worker)
  redis.call("ZADD", K .. ":workers", 0, worker)
  return 1

elseif command == "lost" then
  -- gateway -> triples id, epoch, worker, flat: this gateway's requests whose worker's lease has ended
  local gateway = ARGV[2]
  local lost = {}
  for _, worker in ipairs(redis.call("ZRANGEBYSCORE", K .. ":workers", "-inf", "(" .. now_ms())) do
    local claims = K .. ":claims:" .. worker
    for _, id in ipairs(redis.call("SMEMBERS", claims)) do
      local field = redis.call("HMGET", K .. ":request:" .. id, "gateway", "epoch")
      if not field[1] then
        redis.call("SREM", claims, id)
      elseif field[1] == gateway then
        lost[#lost + 1] = id
        lost[#lost + 1] = tonumber(field[2])
        lost[#lost + 1] = worker
      end
    end
    if redis.call("EXISTS", claims) == 0 then
      redis.call("ZREM", K .. ":workers", worker)
    end
  end
  return lost

elseif command == "workers" then
  -- -> the reports of the workers whose lease holds
  local reports = {}
  for _, worker in ipairs(redis.call("ZRANGEBYSCORE", K .. ":workers", now_ms(), "+inf")) do
    local report = redis.call("GET", K .. ":worker:" .. worker)
    if report then
      reports[#reports + 1] = report
    end
  end
  return reports

elseif command == "touch" then
  -- version, keep_alive_ms or "": counts as a use of the version
  touch(ARGV[2], ARGV[3])
  redis.call("PUBLISH", K .. ":signal", "demand")
  return 1

elseif command == "demand" then
  -- -> for each version asked for: version, waiting, milliseconds since its last use, keep_alive_ms or "", flat
  local now = now_ms()
  local rows = {}
  for _, version in ipairs(redis.call("SMEMBERS", K .. ":demand")) do
    local field = redis.call("HMGET", K .. ":demand:" .. version, "used_at", "keep_alive_ms")
    rows[#rows + 1] = version
    rows[#rows + 1] = redis.call("ZCARD", K .. ":queue:" .. version)
    rows[#rows + 1] = now - number_or(field[1], now)
    rows[#rows + 1] = field[2] or ""
  end
  return rows

elseif command == "forget" then
  -- version: it is not loaded any more; a keep_alive given for it goes with it
  if redis.call("ZCARD", K .. ":queue:" .. ARGV[2]) == 0 then
    redis.call("SREM", K .. ":demand", ARGV[2])
    redis.call("DEL", K .. ":demand:" .. ARGV[2])
    return 1
  end
  return 0

elseif command == "refuse" then
  -- version -> triples id, epoch, gateway, flat: every waiting request, which leaves the queue
  local version = ARGV[2]
  local refused = {}
  local queue = K .. ":queue:" .. version
  for _, id in ipairs(redis.call("ZRANGE", queue, 0, -1)) do
    local field = redis.call("HMGET", K .. ":request:" .. id, "epoch", "gateway", "caller", "cost")
    if field[1] then
      refused[#refused + 1] = id
      refused[#refused + 1] = tonumber(field[1])
      refused[#refused + 1] = field[2]
      remove(id, version, field[3])
      charge(version, field[3], -tonumber(field[4]))
      redis.call("DEL", K .. ":request:" .. id)
    end
  end
  redis.call("DEL", queue)
  return refused
end

return redis.error_reply("unknown command " .. command)
