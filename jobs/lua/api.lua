-- What callers of the API do with a job.

local VIDEO = {['text-to-video'] = true, ['image-to-video'] = true}

-- Redis refuses writes when it is full: before that happens to a running job, new ones are refused.
local function nearly_full()
  local memory = redis.call('INFO', 'memory')
  local used, most = memory:match('used_memory:(%d+)'), memory:match('maxmemory:(%d+)')
  return tonumber(most) > 0 and tonumber(used) > FULL * tonumber(most)
end

-- Why n more jobs can't be recorded, as submit answers it. limits: JSON, see store.py.
local function no_room(queue, tenant, n, limits)
  limits = cjson.decode(limits)
  local most = math.min(limits.queued, limits.queued_of_tenant, limits.active or n)
  if n > most then return {-6, n, most} end
  local waiting = redis.call('ZCARD', P .. 'queued:' .. queue)
  if waiting + n > limits.queued then return {-2, waiting, limits.queued} end
  waiting = redis.call('ZCARD', P .. 'jobs:' .. tenant .. ':queued')
  if waiting + n > limits.queued_of_tenant then return {-2, waiting, limits.queued_of_tenant} end
  if nearly_full() then return {-3, ''} end
  local active = waiting + redis.call('ZCARD', P .. 'jobs:' .. tenant .. ':running')
  if limits.active and active + n > limits.active then return {-4, active} end
  local used = tonumber(redis.call('HGET', usage_key(tenant), 'gpu_s') or 0)
  if limits.gpu_s and used >= limits.gpu_s then return {-5, math.ceil(86400 - now % 86400)} end
end

-- id request queue priority tenant model task ranks deadline_s warnings api_key webhook pictures work key
-- body retry_of limits; webhook, pictures: JSON, '' for none
-- -> {1, id} created | {0, id} the same request came before | {-1, id} the key was used otherwise
-- | {-2, n, most} so many jobs wait already, in all or of this tenant | {-3, ''} no memory is left
-- | {-6, n, most} so many are never taken at once | {-4, n} so many of this tenant are not over
-- | {-5, s} it has used its GPU seconds, for s more
function step.submit(id, request, queue, priority, tenant, model, task, ranks, deadline_s, warnings, api_key,
    webhook, pictures, work, key, body, retry_of, limits)
  if redis.call('EXISTS', job(id)) == 1 then return {1, id} end  -- sent twice, the answer was lost
  local idem = P .. 'idem:' .. tenant .. ':' .. key
  if key ~= '' then
    local h = redis.call('HMGET', idem, 'id', 'body')
    if h[1] and redis.call('HEXISTS', job(h[1]), 'id') == 1
        and redis.call('HEXISTS', job(h[1]), 'deleted') == 0 then
      return {h[2] == body and 0 or -1, h[1]}
    end
  end
  local full = limits and no_room(queue, tenant, 1, limits)
  if full then return full end
  if key ~= '' then
    redis.call('HSET', idem, 'id', id, 'body', body)
    redis.call('EXPIRE', idem, 86400)
  end
  redis.call('HSET', job(id), 'id', id, 'state', 'queued', 'seq', 0, 'queue', queue,
    'priority', priority, 'tenant', tenant, 'model', model, 'task', task, 'ranks', ranks,
    'request', request, 'warnings', warnings, 'api_key', api_key, 'created_at', time(now), 'fence', 0, 'crashes', 0,
    'work', work)
  if pictures ~= '' then redis.call('SET', P .. 'pictures:' .. id, pictures) end
  if webhook ~= '' then redis.call('HSET', job(id), 'webhook', webhook) end
  if retry_of ~= '' then
    redis.call('HSET', job(id), 'retry_of', retry_of)
    redis.call('ZREM', P .. 'dead:' .. tenant, retry_of)  -- somebody has looked after it
  end
  if deadline_s ~= '' then
    redis.call('HSET', job(id), 'deadline_at', time(now + tonumber(deadline_s)))
  end
  redis.call('ZADD', P .. 'jobs:' .. tenant, time(now), id)
  if VIDEO[task] then redis.call('ZADD', P .. 'videos:' .. tenant, 0, id) end
  enqueue(id, 0)
  return {1, id}
end

-- tenant -> requests of this minute, this one too; seconds to the next minute
function step.count(tenant)
  local key = P .. 'rate:' .. tenant .. ':' .. math.floor(now / 60)
  local asked = redis.call('INCR', key)
  redis.call('EXPIRE', key, 120)
  return {asked, 60 - math.floor(now) % 60}
end

-- The caller has sent the first hint itself: the reaper need not.
function step.hinted(id)
  redis.call('ZADD', P .. 'send', 'XX', now + RESEND, id)
end

-- id tenant -> the state after it, nil if unknown
function step.cancel(id, tenant)
  local h = get(id, 'state', 'tenant', 'deleted', 'cancel')
  if h[2] ~= tenant or h[3] then return nil end
  if h[1] == 'queued' and not committing(id) then
    move(id, 'canceled')
    return 'canceled'
  end
  if not FINAL[h[1]] and not h[4] then
    redis.call('HSET', job(id), 'cancel', time(now))
    redis.call('ZADD', P .. 'jobs:' .. tenant .. ':canceling', redis.call('HGET', job(id), 'created_at'), id)
    if h[1] == 'queued' then enqueue(id, 0) end
    redis.call('RPUSH', P .. 'wish:' .. id, 'cancel')
    redis.call('EXPIRE', P .. 'wish:' .. id, 60)
    emit(id, 'canceling')
  end
  return h[1]
end

-- id tenant -> 1 | nil if unknown. The record goes once its artifacts are gone: see purged.
function step.delete(id, tenant)
  local state = step.cancel(id, tenant)
  if not state then return nil end
  redis.call('HSET', job(id), 'deleted', 1)
  forget_deliveries(id)
  redis.call('ZREM', P .. 'jobs:' .. tenant, id)
  redis.call('ZREM', P .. 'videos:' .. tenant, id)
  if FINAL[state] then redis.call('ZADD', P .. 'purge', now, id) end
  return 1
end
