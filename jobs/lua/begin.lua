-- The job's life, each step in one go. KEYS[1]: the prefix of all keys; ARGV: the step, its arguments.
-- These files are one script: this one, those with the steps, end.lua.
-- Redis's own clock is the only clock. Nothing here is called by anyone but store.py.
--
-- job:ID hash        id state seq queue tenant model task priority ranks request warnings created_at
--                    ready_at started_at finished_at deadline_at fence token worker lease_until plan
--                    progress attempt:N errors crashes sends cancel deleted artifacts metrics error retry_of
--                    batch committing api_key webhook work
-- pictures:ID        JSON: what the job begins with, as data URLs; its request has what is shown of them
-- queued:QUEUE zset  what waits; score = priority, then age, or ready_at if that is to come
-- queued:QUEUE:TENANT zset  the same of one tenant: what claim picks from
-- turns:QUEUE zset   tenants; score = when each was served last, 0 for never
-- ran:QUEUE list     seconds that the last jobs ran which succeeded; pace:QUEUE:MODEL   by their work
-- paused:QUEUE       since when nothing is claimed, if so
-- send zset          score = when the next hint is due
-- running zset       score = lease_until
-- deadlines zset     score = deadline_at, while queued
-- idem:TENANT:KEY    hash: id, body
-- wish:ID list       wakes the worker of a running job; the truth is job:ID cancel
-- batch:ID hash, batch:ID:jobs zset   tenant created_at total; its jobs in order
-- dead:TENANT zset   failed for good by faults; score = when
-- claimed:NONCE      the job that this claim took, for a lease: who heard no answer asks again
-- sweep zset         over, and an attempt may have stored what no manifest names: to be looked at
-- purge zset         deleted, score = when its artifacts are to be removed, for the first or the last time
-- preview:ID         its latest preview, for an hour
-- log:ID list        what its attempts said, for a week
-- fold:TENANT:DIGEST   job that an unnamed request, which may come again, is to make or has made
-- link_secret        signs links to outputs: see tenants.py, which alone writes it
-- rate:TENANT:MINUTE requests; usage:TENANT:DAY hash: gpu_s, and of each key: jobs images video_s gpu_s
-- upload:ID hash, uploads zset   see uploads.py, which alone writes them
-- jobs:TENANT, jobs:TENANT:STATE zset, jobs:TENANT:canceling   listing, score = created_at
-- videos:TENANT zset   those that make videos, score = 0: in the order of their ids, so of their times
-- events stream      every change
-- outbox zset, deliveries:ID list, delivery:ID hash   what webhooks are told: see outbox.lua
--
-- committing: an attempt has begun to publish, and whether it has published the storage alone knows.
-- Such a job ends by nobody but a worker, who has asked there: what would end it otherwise (a cancel,
-- a deadline, the last crash) makes it ready to be claimed.

local P = KEYS[1] .. ':'
local t = redis.call('TIME')
local now = tonumber(t[1]) + tonumber(t[2]) / 1e6
local FINAL = {succeeded = true, failed = true, canceled = true, expired = true}
local RESEND, RESEND_MAX, CRASHES = 60, 3600, 3
local FULL = 0.9  -- of maxmemory
local OVERTAKEN, LEFT = 30, 2  -- seconds for which a job stands back for models in memory, see claim
local SWEEP = 86400  -- seconds after which nobody uploads any more
local AGEING = 300  -- seconds of waiting that are worth a priority

local function job(id) return P .. 'job:' .. id end
local function get(id, ...) return redis.call('HMGET', job(id), ...) end
local function time(x) return string.format('%.6f', x) end
local function queue_score(priority, at) return tonumber(priority) * 1e11 + tonumber(at) end

local function mark_dead(id) redis.call('ZADD', P .. 'dead:' .. get(id, 'tenant')[1], now, id) end

local function usage_key(tenant) return P .. 'usage:' .. tenant .. ':' .. math.floor(now / 86400) end

-- What a job's last attempt has made and taken, to the account of the key that asked for it.
local function account(id, succeeded, artifacts, metrics)
  local h = get(id, 'tenant', 'api_key')
  local usage = usage_key(h[1])
  local function add(name, value)
    if value > 0 then redis.call('HINCRBYFLOAT', usage, h[2] .. ' ' .. name, value) end
  end
  if succeeded then add('jobs', 1) end
  for _, made in ipairs(artifacts) do
    if made.frames == 1 then add('images', 1) else add('video_s', made.frames / made.fps) end
  end
  local gpu_s = metrics.gpu_seconds or 0
  add('gpu_s', gpu_s)
  redis.call('HINCRBYFLOAT', usage, 'gpu_s', gpu_s)
  redis.call('EXPIRE', usage, 400 * 86400)
end

local function emit(id, kind, data)
  local seq = redis.call('HINCRBY', job(id), 'seq', 1)
  redis.call('XADD', P .. 'events', 'MAXLEN', '~', 100000, '*', 'job', id, 'seq', seq,
    'kind', kind, 'data', data or '')
end

local tell  -- a job's webhook of its end: see outbox.lua

local function move(id, state)
  local h = get(id, 'state', 'tenant', 'created_at', 'queue', 'fence')
  redis.call('ZREM', P .. 'jobs:' .. h[2] .. ':' .. h[1], id)
  redis.call('ZADD', P .. 'jobs:' .. h[2] .. ':' .. state, h[3], id)
  redis.call('HSET', job(id), 'state', state)
  if state ~= 'queued' then
    redis.call('ZREM', P .. 'queued:' .. h[4], id)
    redis.call('ZREM', P .. 'queued:' .. h[4] .. ':' .. h[2], id)
    redis.call('ZREM', P .. 'send', id)
    redis.call('ZREM', P .. 'deadlines', id)
  end
  if state ~= 'running' then redis.call('ZREM', P .. 'running', id) end
  if FINAL[state] then
    redis.call('HSET', job(id), 'finished_at', time(now))
    if tonumber(h[5]) > (state == 'succeeded' and 1 or 0) then
      redis.call('ZADD', P .. 'sweep', now + SWEEP, id)
    end
    redis.call('ZREM', P .. 'jobs:' .. h[2] .. ':canceling', id)
    if redis.call('HEXISTS', job(id), 'deleted') == 1 then
      redis.call('ZADD', P .. 'purge', now, id)
    end
    tell(id, state)
  end
  emit(id, state)
end

-- The open attempt gets its end and its error (JSON text, '' for none).
local function close_attempt(id, err)
  local h = get(id, 'fence', 'plan')
  local name = 'attempt:' .. h[1]
  local text = redis.call('HGET', job(id), name)
  if not text then return end
  local attempt = cjson.decode(text)
  attempt.ended_at = now
  if h[2] then attempt.plan = cjson.decode(h[2]) end
  if err ~= '' then attempt.error = cjson.decode(err) end
  redis.call('HSET', job(id), name, cjson.encode(attempt))
end

local function committing(id) return redis.call('HEXISTS', job(id), 'committing') == 1 end
local function canceling(id) return redis.call('HEXISTS', job(id), 'cancel') == 1 end

local function enqueue(id, delay)
  local h = get(id, 'queue', 'priority', 'deadline_at', 'created_at', 'tenant')
  -- Put back at once it has its old place: it has waited already.
  local ready_at = delay > 0 and now + delay or tonumber(h[4])
  redis.call('HSET', job(id), 'ready_at', time(ready_at), 'sends', 0)
  redis.call('HDEL', job(id), 'lease_until')
  move(id, 'queued')
  redis.call('ZADD', P .. 'queued:' .. h[1], queue_score(h[2], ready_at), id)
  redis.call('ZADD', P .. 'queued:' .. h[1] .. ':' .. h[5], queue_score(h[2], ready_at), id)
  redis.call('ZADD', P .. 'turns:' .. h[1], 'NX', 0, h[5])
  redis.call('ZADD', P .. 'send', now + delay, id)
  if h[3] then redis.call('ZADD', P .. 'deadlines', h[3], id) end
end

-- What had to wait gets its old place again once that is over, not one behind all that came meanwhile.
local function regain_place(id)
  local h = get(id, 'queue', 'priority', 'created_at', 'tenant', 'ready_at')
  if not h[5] or tonumber(h[5]) <= tonumber(h[3]) then return end
  redis.call('HSET', job(id), 'ready_at', h[3])
  local score = queue_score(h[2], h[3])
  redis.call('ZADD', P .. 'queued:' .. h[1], 'XX', score, id)
  redis.call('ZADD', P .. 'queued:' .. h[1] .. ':' .. h[4], 'XX', score, id)
end

-- 'running' or 'queued' while the caller's token is the newest one, else nil. A holder whose lease
-- ran out keeps its job as long as nobody else has claimed it.
local function held(id, token)
  local h = get(id, 'state', 'token')
  if h[2] == token and not FINAL[h[1]] then return h[1] end
end

local function readopt(id)
  redis.call('HINCRBY', job(id), 'crashes', -1)
  local n = redis.call('HGET', job(id), 'fence')
  local attempt = cjson.decode(redis.call('HGET', job(id), 'attempt:' .. n))
  attempt.ended_at, attempt.error = nil, nil
  redis.call('HSET', job(id), 'attempt:' .. n, cjson.encode(attempt))
  move(id, 'running')
end

-- Whether somebody, or an eviction, has removed the job's record: that is one job's loss, not the fleet's.
local function without_record(id)
  if redis.call('HEXISTS', job(id), 'id') == 1 then return false end
  redis.call('DEL', job(id), P .. 'pictures:' .. id, P .. 'log:' .. id)
  for _, line in ipairs({'running', 'deadlines', 'send', 'sweep'}) do redis.call('ZREM', P .. line, id) end
  redis.log(redis.LOG_WARNING, id .. ' has no record any more')
  return true
end

-- Whether a queued job of these fields is to end, by a worker that asks the storage first.
local function to_settle(committing, cancel, deadline_at, crashes)
  local late = deadline_at and tonumber(deadline_at) <= now
  return committing and (cancel or late or tonumber(crashes) >= CRASHES)
end

-- Tenants that have jobs here, the one served least recently first.
local function tenants_in_turn(queue)
  local turns, found = P .. 'turns:' .. queue, {}
  local all = redis.call('ZRANGE', turns, 0, -1, 'WITHSCORES')
  for i = 1, #all, 2 do
    if redis.call('EXISTS', P .. 'queued:' .. queue .. ':' .. all[i]) == 1 then
      found[#found + 1] = {name = all[i], served = tonumber(all[i + 1])}
    elseif tonumber(all[i + 1]) < now - 3600 then
      redis.call('ZREM', turns, all[i])
    end
  end
  return found
end

-- Jobs that are ready and that fits(id) says yes to (nil: it has no record), in the order in which they are to run: by the
-- best priority of a tenant, to which waiting for its turn adds; then the tenant whose turn it is;
-- then its own jobs, by priority, to which waiting adds, and by age. Up to SEEN of a tenant and a
-- priority, or as many as come with the first that fits. Who looks, on a node that few of the jobs fit,
-- may look at READ of each tenant, and at four times as many in all: some 50 and 200 ms.
local SEEN, READ = 50, 10000
local function ready_jobs(queue, fits)
  local rows, all = {}, 0
  for _, tenant in ipairs(tenants_in_turn(queue)) do
    local line = P .. 'queued:' .. queue .. ':' .. tenant.name
    local read = 0
    for priority = 0, 2 do
      local low, high = queue_score(priority, 0), queue_score(priority, now)
      local seen, from, most = 0, 0, SEEN
      repeat
        local found = redis.call('ZRANGE', line, low, high, 'BYSCORE', 'LIMIT', from, most, 'WITHSCORES')
        local last = #found < 2 * most
        from, most = from + most, 20 * SEEN
        for i = 1, #found, 2 do
          read = read + 1
          local fit = fits(found[i])
          if fit == nil and without_record(found[i]) then
            redis.call('ZREM', line, found[i])
            redis.call('ZREM', P .. 'queued:' .. queue, found[i])
            redis.call('ZREM', P .. 'jobs:' .. tenant.name .. ':queued', found[i])
          elseif fit then
            local at = tonumber(found[i + 1]) - low
            local function rank(since) return math.max(0, priority - math.floor((now - since) / AGEING)) end
            tenant.rank = math.min(tenant.rank or 9, rank(math.max(at, tenant.served)))
            rows[#rows + 1] = {id = found[i], rank = rank(at), tenant = tenant, at = at, place = #rows}
            seen = seen + 1
          end
        end
      until seen > 0 or last or read >= READ
    end
    all = all + read
    if all >= 4 * READ then break end
  end
  table.sort(rows, function(a, b)
    if a.tenant.rank ~= b.tenant.rank then return a.tenant.rank < b.tenant.rank end
    if a.tenant.served ~= b.tenant.served then return a.tenant.served < b.tenant.served end
    if a.rank ~= b.rank then return a.rank < b.rank end
    if a.at ~= b.at then return a.at < b.at end
    return a.place < b.place
  end)
  return rows
end

-- As claim answers it.
local function claimed(id)
  local h = get(id, 'request', 'errors', 'crashes', 'deadline_at', 'token', 'fence')
  local deadline_s = h[4] and time(tonumber(h[4]) - now) or ''
  local poisoned = tonumber(h[3]) >= CRASHES
  local pictures = redis.call('GET', P .. 'pictures:' .. id) or ''
  return {id, h[5], tonumber(h[6]), h[1], pictures, deadline_s, h[2] or '[]', committing(id) and 1 or 0,
    canceling(id) and 1 or 0, poisoned and 1 or 0}
end

local function take(id, worker, nonce, lease_until)
  local fence = redis.call('HINCRBY', job(id), 'fence', 1)
  local token = fence .. ':' .. nonce
  redis.call('HSET', job(id), 'token', token, 'worker', worker, 'started_at', time(now),
    'lease_until', time(lease_until), 'attempt:' .. fence,
    cjson.encode({number = fence, worker = worker, started_at = now}))
  redis.call('HDEL', job(id), 'progress', 'plan')
  move(id, 'running')
  redis.call('ZADD', P .. 'running', lease_until, id)
  local h = get(id, 'queue', 'tenant')
  redis.call('ZADD', P .. 'turns:' .. h[1], now, h[2])
  redis.call('SET', P .. 'claimed:' .. nonce, id, 'EX', math.ceil(lease_until - now))
  return claimed(id)
end

local step = {}
