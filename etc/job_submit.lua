-- slurm-mig's submit plugin for Slurm's job_submit/lua.
--
-- Refuses requests that nobody may make or that no GPU can ever serve, with a message that says what
-- is possible; gives an untyped request (--gres=gpu:1) the type of its partition; wakes slurm-mig for
-- a job whose type is not free. What is possible comes from submit.lua, which slurm-mig writes.
--
-- A fault in here never blocks submission: the job passes as it came and the fault is logged, once a
-- minute at most. Nothing is changed in a job before everything about it is known.
--
-- Use it as the site's job_submit.lua, or from an existing one:
--     dofile("/etc/slurm/slurm-mig/job_submit.lua")
--     ... first in slurm_job_submit:  local rc = slurm_mig.submit(job_desc, part_list)
--                                     if rc ~= slurm.SUCCESS then return rc end
--     ... first in slurm_job_modify:  local rc = slurm_mig.modify(job_desc, job_rec, part_list)
--                                     if rc ~= slurm.SUCCESS then return rc end
-- Lua 5.1 to 5.4.

slurm_mig = slurm_mig or {}
slurm_mig.table_path = slurm_mig.table_path or "/etc/slurm/slurm-mig/submit.lua"

local FIELDS = { "tres_per_node", "tres_per_job", "tres_per_task", "tres_per_socket" }
local LONGEST = 4096
local MOST_NODES = 65536
local EXCLUSIVE = 0   -- job_desc.shared of --exclusive; of partitions, max_share of EXCLUSIVE
local NO_VAL = 4294967294

local state = { known = nil, read = -1, logged = -60, woken = -1, free = nil, asked = {} }

local function contains(list, value)
    for _, item in ipairs(list or {}) do
        if item == value then return true end
    end
    return false
end

local function log_fault(what)
    if os.time() - state.logged < 60 then return end
    state.logged = os.time()
    slurm.log_error("slurm-mig: submit plugin: %s", tostring(what))
end

local function exists(path)
    local file = io.open(path, "r")
    if file then file:close() end
    return file ~= nil
end

-- What a file of ours returns, nil when there is none. A damaged one is an error.
local function read_table(path)
    local chunk, why = loadfile(path)
    if not chunk then
        if exists(path) then error(why, 0) end
        return nil
    end
    return chunk()
end

-- What is possible, read again at most once a second.
local function known_now()
    if state.read ~= os.time() then
        state.read = os.time()
        state.known = nil
        state.known = read_table(slurm_mig.table_path)
    end
    return state.known
end

local function is_filler(known, name)
    return name == "guard" or name == "none" or name:match("^off%d*$") ~= nil
        or contains(known.fillers, name)
end

-- Names of the job's partitions: those that it asks for, or the cluster's default one.
local function partitions_of(asked, part_list)
    local names = {}
    for name in (asked or ""):gmatch("[^,]+") do names[#names + 1] = name end
    if #names > 0 then return names end
    for name, part in pairs(part_list or {}) do
        if part.flag_default == 1 or part.flag_default == true then return { name } end
    end
    return names
end

-- Types that any of these partitions can ever have; nil where slurm-mig does not know them all.
local function possible_in(known, partitions)
    local found, there = {}, {}
    for _, name in ipairs(partitions) do
        local types = known.possible[name]
        if not types or contains(known.open, name) then return nil end
        for _, kind in ipairs(types) do
            if not there[kind] then found[#found + 1] = kind end
            there[kind] = true
        end
    end
    table.sort(found)
    return #found > 0 and found or nil
end

local function managed(known, partitions)
    for _, name in ipairs(partitions) do
        if contains(known.managed, name) then return name end
    end
    return nil
end

local function is_count(word)
    return word:match("^%d+[kKmMgGtTpP]?[iI]?[bB]?$") ~= nil
end

-- "gres/gpu:3g.20gb:1" to { prefix = "gres/", type = "3g.20gb", rest = ":1", count = 1 }; nil for
-- what is not a gpu. Slurm writes "=" before the count of what comes from --tres-per-task.
local function split(entry)
    local prefix, rest = entry:match("^(gres[/:])(.*)$")
    if not prefix then prefix, rest = "", entry end
    if rest == "gpu" then return { prefix = prefix, rest = "", count = 1 } end
    local after = rest:match("^gpu[:=/](.*)$")
    if not after then return nil end
    local kind, sign, count = after:match("^(.-)([:=])([^:=]*)$")
    if not kind or not is_count(count) then
        kind, sign, count = after, "", ""
        if is_count(after) then kind, sign, count = "", ":", after end
    end
    kind = kind:gsub(":+$", "")
    return {
        prefix = prefix, rest = sign .. count, count = tonumber(count:match("^%d+") or "1"),
        type = kind ~= "" and kind or nil,
    }
end

local function joined(part)
    return part.prefix .. "gpu" .. (part.type and ":" .. part.type or "") .. part.rest
end

-- "a[1-3,07],b" to its names; nil for what is not understood here.
local function expand(text)
    local names, at = {}, 1
    while at <= #text do
        local stem, past = text:match("^([%w_.-]+)()", at)
        if not stem then return nil end
        local inside, after = text:match("^%[([%d,-]+)%]()", past)
        if not inside then names[#names + 1] = stem end
        for part in (inside or ""):gmatch("[^,]+") do
            local low, high = part:match("^(%d+)%-?(%d*)$")
            if not low or #low > 9 or #high > 9 then return nil end
            local first, last = tonumber(low), tonumber(high ~= "" and high or low)
            if last - first > MOST_NODES then return nil end
            for n = first, last do
                names[#names + 1] = stem .. ("%0" .. #low .. "d"):format(n)
            end
        end
        at = after or past
        if at <= #text and text:sub(at, at) ~= "," then return nil end
        at = at + 1
    end
    return names
end

-- Compute slices and memory of "3g.20gb".
local function size_of(kind)
    local slices, memory = kind:match("^(%d+)g%.(%d+)gb")
    return tonumber(slices), tonumber(memory)
end

-- The smallest type that is at least as large as the one asked for, else the largest; nil when the
-- names say nothing about sizes.
local function nearest(kind, possible)
    local slices, memory = size_of(kind)
    if not slices then return nil end
    local best, largest
    local function less(a, b)
        local a_slices, a_memory = size_of(a)
        local b_slices, b_memory = size_of(b)
        if a_memory ~= b_memory then return a_memory < b_memory end
        return a_slices < b_slices
    end
    for _, name in ipairs(possible) do
        local has_slices, has_memory = size_of(name)
        if has_slices and not name:find("+", 1, true) then
            if not largest or less(largest, name) then largest = name end
            if has_slices >= slices and has_memory >= memory and (not best or less(name, best)) then
                best = name
            end
        end
    end
    return best or largest
end

local function shown(text)
    return (#text > 64 and text:sub(1, 64) .. "..." or text):gsub("%c", "?")
end

-- "a100_3g.20gb" to "3g.20gb" and the feature that its nodes have, where the site has such names.
local function short_name(known, kind, possible)
    if not possible or contains(possible, kind) then return kind, "" end
    for prefix, feature in pairs(known.long_names or {}) do
        if kind:sub(1, #prefix + 1) == prefix .. "_" then
            return kind:sub(#prefix + 2), feature
        end
    end
    return kind, ""
end

-- The type for untyped requests: the one default of all its partitions. (Slurm itself refuses a job
-- that asks for GPUs with and without a type.)
local function default_type(known, job)
    local found
    for _, name in ipairs(job.partitions) do
        local default = known.untyped ~= "refuse" and known.default_types[name] or nil
        local types = known.possible[name]
        if not default and known.untyped ~= "refuse" and types and #types == 1
            and not contains(known.open, name) then
            default = types[1]
        end
        if not default or (found and found ~= default) then return nil end
        found = default
    end
    return found
end

-- Puts the right type into one request; a message for the user when there is none.
local function settle(part, known, job)
    local where = table.concat(job.partitions, ",")
    if part.type == nil then
        if part.count == 0 then return nil end
        part.type = default_type(known, job)
        if part.type or not managed(known, job.partitions) then return nil end
        local types = job.possible or known.possible[managed(known, job.partitions)]
        return "say which GPU you want, for example --gres=gpu:" .. types[1]
            .. ":1; partition " .. where .. " has " .. table.concat(types, ", ")
    end
    if is_filler(known, part.type) then
        return "gpu:" .. shown(part.type) .. " is no device that a job may ask for"
    end
    local feature
    part.type, feature = short_name(known, part.type, job.possible)
    if feature ~= "" then job.features[feature] = true end
    if not job.possible or contains(job.possible, part.type) then return nil end
    local near = nearest(part.type, job.possible)
    return "no GPU of partition " .. where .. " can ever be gpu:" .. shown(part.type)
        .. "; possible: " .. table.concat(job.possible, ", ")
        .. (near and "; nearest: " .. near or "")
end

-- Every request of the job, field by field; a message for the user when one is too long.
local function parse(source, job)
    for _, field in ipairs(FIELDS) do
        local value = source[field]
        if type(value) == "string" and value:find("gpu", 1, true) then
            if #value > LONGEST then return "the request for GPUs is too long" end
            local parts = {}
            for entry in value:gmatch("[^,]+") do
                local part = split(entry) or { other = entry }
                job.asks = job.asks or not part.other
                parts[#parts + 1] = part
            end
            job.fields[field] = { value = value, parts = parts }
        end
    end
    return nil
end

-- The job's requests as they should be, into job.changes; or a message for the user.
local function settle_all(known, job)
    for _, field in ipairs(FIELDS) do
        local found = job.fields[field]
        if found then
            local words = {}
            for n, part in ipairs(found.parts) do
                local message = not part.other and settle(part, known, job)
                if message then return message end
                words[n] = part.other or joined(part)
            end
            local text = table.concat(words, ",")
            if text ~= found.value then job.changes[field] = text end
        end
    end
    return nil
end

-- A long name says which GPUs: their feature joins the job's constraint.
local function constrain(job, before)
    for feature in pairs(job.features) do
        if not before or before == "" then
            before = feature
        elseif before:match("^[%w_.&-]+$") then
            before = before .. "&" .. feature
        else
            return "with --constraint=" .. shown(before) .. " use the short name of the GPU type"
        end
        job.changes.features = before
    end
    return nil
end

-- Whole-node jobs, where the site refuses them beside MIG.
local function whole_node(known, job, shared, part_list)
    if known.exclusive ~= "refuse" then return nil end
    local name = managed(known, job.partitions)
    if not name then return nil end
    local part = (part_list or {})[name]
    if shared ~= EXCLUSIVE and not (job.asks and part and part.max_share == EXCLUSIVE) then
        return nil
    end
    return "a whole node of partition " .. name .. " can't be had (--exclusive): its GPUs are shared "
        .. "as MIG instances; ask for the instances, CPUs and memory that you need"
end

-- Which shape each node has that the job names; nil when one is not in our care or named twice.
local function shapes_of(known, names)
    local found, wanted, left = {}, {}, #names
    for _, name in ipairs(names) do wanted[name] = true end
    for _, shape in ipairs(known.shapes) do
        for _, name in ipairs(shape.nodes) do
            if wanted[name] then
                found[name], wanted[name], left = shape, nil, left - 1
            end
        end
    end
    return left == 0 and found or nil
end

-- False for a job that may need more nodes than it names: the rest is Slurm's to find.
local function fits(job, job_desc, shape, count)
    local tasks, each = job_desc.num_tasks or NO_VAL, job_desc.cpus_per_task or 0
    if tasks >= NO_VAL then tasks = 1 end
    if each < 1 or each >= 65534 then each = 1 end
    if tasks * each > count * shape.cpus then return false end
    for field, found in pairs(job.fields) do
        local times = field == "tres_per_task" and tasks or field == "tres_per_job" and 1 or 0
        for _, part in ipairs(found.parts) do
            local most = part.type and shape.most[part.type] or 0
            if part.type and part.count * times > count * most then return false end
        end
    end
    return true
end

-- A message for the user when one of the nodes can never have what the job asks for; and whether that
-- is a part of a split instance, which only an administrator makes: no record of the catalog has any.
local function impossible_on(known, shapes, job)
    local is_part = false
    for name, shape in pairs(shapes) do
        local there = (known.parts or {})[name]
        for _, found in pairs(job.fields) do
            for _, part in ipairs(found.parts) do
                local wanted = part.type and part.count > 0 and not shape.most[part.type]
                is_part = is_part or (wanted and contains(there, part.type))
                if wanted and not contains(there, part.type) then
                    local types = {}
                    for kind in pairs(shape.most) do types[#types + 1] = kind end
                    for _, kind in ipairs(there or {}) do types[#types + 1] = kind end
                    table.sort(types)
                    return "node " .. name .. " can never have gpu:" .. shown(part.type)
                        .. "; possible: " .. table.concat(types, ", ")
                end
            end
        end
    end
    return nil, is_part
end

-- Every node of the job's partitions but these, and the catalog's records of other shapes; nil where
-- not all are known.
local function all_but(known, partitions, shapes)
    local stay, excluded = {}, {}
    for name, shape in pairs(shapes) do stay[name], stay[shape] = true, true end
    local function exclude(names)
        for _, name in ipairs(names) do
            if not stay[name] then excluded[#excluded + 1], stay[name] = name, true end
        end
    end
    for _, partition in ipairs(partitions) do
        if not known.nodes[partition] then return nil end
        exclude(known.nodes[partition])
    end
    for _, shape in ipairs(known.shapes) do
        if not stay[shape] then exclude(shape.records) end
    end
    return excluded
end

-- A job that names its nodes (-w) would be tested against those alone, and refused, or held for ever,
-- while they lack its type. So it excludes every other node instead, which comes to the same (Slurm
-- itself does so with a list longer than -N says), and is tested against the catalog's records too.
local function pin(known, job, job_desc)
    local text, without = job_desc.req_nodes or "", job_desc.exc_nodes or ""
    if text == "" or not job.asks or #(known.shapes or {}) == 0 then return nil end
    local names = #text + #without <= LONGEST and expand(text)
    local shapes, others = names and shapes_of(known, names), names and expand(without)
    if not shapes or not others then return nil end
    local message, is_part = impossible_on(known, shapes, job)
    if message or is_part then return message end
    for _, name in ipairs(others) do
        if shapes[name] then return nil end
    end
    local least, most = job_desc.min_nodes or NO_VAL, job_desc.max_nodes or NO_VAL
    if most == 0 or most > NO_VAL then most = NO_VAL end
    if (least < NO_VAL and least ~= #names) or (most < NO_VAL and most ~= #names) then return nil end
    if most == NO_VAL and not fits(job, job_desc, shapes[names[1]], #names) then return nil end
    local excluded = all_but(known, job.partitions, shapes)
    if not excluded then return nil end
    if without ~= "" then excluded[#excluded + 1] = without end
    job.changes.req_nodes, job.changes.min_nodes = "", #names
    if #excluded > 0 then job.changes.exc_nodes = table.concat(excluded, ",") end
    return nil
end

-- Puts the changes into the job, all or none.
local function apply(job_desc, changes)
    local before = {}
    local ok, fault = pcall(function()
        for field, value in pairs(changes) do
            before[field] = job_desc[field]
            job_desc[field] = value
        end
    end)
    if ok then return end
    for field, value in pairs(before) do pcall(function() job_desc[field] = value end) end
    error(fault, 0)
end

-- True when the last cycle left so many free that this job, after those since, finds its own.
local function is_free(known, job, job_desc)
    if not known.free or job_desc.array_inx then return false end
    -- What is free may not be where such a job must run.
    for _, field in ipairs({ "req_nodes", "exc_nodes", "features" }) do
        if (job_desc[field] or "") ~= "" then return false end
    end
    local now = read_table(known.free)
    if not now then return false end
    if not state.free or state.free ~= now.at then state.free, state.asked = now.at, {} end
    local nodes = tonumber(job_desc.min_nodes) or NO_VAL
    if nodes >= NO_VAL or nodes < 1 then nodes = 1 end
    local name = job.partitions[1]
    local enough = true
    for _, found in pairs(job.fields) do
        for _, part in ipairs(found.parts) do
            if part.type then
                local key = name .. " " .. part.type
                state.asked[key] = (state.asked[key] or 0) + part.count * nodes
                local free = (now.free[name] or {})[part.type] or 0
                enough = enough and state.asked[key] <= free
            end
        end
    end
    return enough
end

-- Wakes slurm-mig, at most once a second: systemd watches the file.
local function wake(known, job, job_desc)
    if not known.wake or not job.asks or not managed(known, job.partitions) then return end
    if is_free(known, job, job_desc) or state.woken == os.time() then return end
    state.woken = os.time()
    local file, why = io.open(known.wake, "w")
    if not file then error(why, 0) end
    file:write("submit\n")
    file:close()
end

local function new_job(partitions, known)
    return {
        partitions = partitions, possible = possible_in(known, partitions),
        fields = {}, features = {}, changes = {}, asks = false,
    }
end

-- A message for the user, or nil when the job may pass; `job` is then ready to be applied.
local function check(job_desc, job_rec, part_list, known)
    local asked = job_desc.partition or (job_rec and job_rec.partition)
    local job = new_job(partitions_of(asked, part_list), known)
    if #job.partitions == 0 then return nil, job end
    local message = parse(job_desc, job)
    if not message and job_rec and job_desc.partition then
        -- Moved to another partition: what it asked for before must be possible there too.
        local before = new_job(job.partitions, known)
        message = parse(job_rec, before)
        for field in pairs(job.fields) do before.fields[field] = nil end
        message = message or settle_all(known, before)
        for field, value in pairs(before.changes) do job.changes[field] = value end
    end
    message = message or settle_all(known, job)
        or constrain(job, job_desc.features or (job_rec and job_rec.features))
        or whole_node(known, job, job_desc.shared, part_list)
        or (not job_rec and pin(known, job, job_desc) or nil)
    return message, job
end

local function run(job_desc, job_rec, part_list)
    local known = known_now()
    if not known then return nil end
    local message, job = check(job_desc, job_rec, part_list, known)
    if message then return message end
    apply(job_desc, job.changes)
    local ok, fault = pcall(wake, known, job, job_desc)
    if not ok then log_fault(fault) end
    return nil
end

local function guarded(job_desc, job_rec, part_list)
    local ok, message = pcall(run, job_desc, job_rec, part_list)
    if not ok then
        log_fault(message)
        return slurm.SUCCESS
    end
    if message then
        slurm.log_user("slurm-mig: %s", message)
        return slurm.ERROR
    end
    return slurm.SUCCESS
end

-- slurm.SUCCESS, or slurm.ERROR after the user has been told why.
function slurm_mig.submit(job_desc, part_list)
    return guarded(job_desc, nil, part_list)
end

-- The same for `scontrol update job`.
function slurm_mig.modify(job_desc, job_rec, part_list)
    return guarded(job_desc, job_rec, part_list)
end

if not slurm_job_submit then
    function slurm_job_submit(job_desc, part_list, _)
        return slurm_mig.submit(job_desc, part_list)
    end
    function slurm_job_modify(job_desc, job_rec, part_list, _)
        return slurm_mig.modify(job_desc, job_rec, part_list)
    end
end

return slurm.SUCCESS
